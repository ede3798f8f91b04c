"""Signals that ask a process to end: what is open is finished first, for a limited time.

A scheduler sends SIGTERM, a terminal SIGINT and SIGHUP, Slurm SIGUSR1 or SIGUSR2 as a warning. The
first signal is noted where a run is between two checkpoints, and ends the process everywhere else.
A thread ends the process when the grace period is over, even if its main thread hangs in a call
that never returns to Python: it learns of the signal through ``signal.set_wakeup_fd``.

Nothing heavy is imported here: the command listens before it imports torch.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from lightning_peft.lightning.handlers import Chain, forked, is_free, others_within, woken

__all__ = ["GRACE", "LISTENER", "SIGNALS", "Listener", "Stopped", "exit_status", "name_of"]

SIGNALS: tuple[int, ...] = tuple(
    int(getattr(signal, name))
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)
"""Those of this system that ask a process to end."""

GRACE = 30.0
"""Seconds, where nothing else is set."""

TWICE = 0.5
"""Seconds in which further signals are the first one again: ``timeout`` sends it to a process and
to its group."""

LONGER = 5.0
"""Seconds that a process waits longer than its jobs, which have the grace period to themselves."""


def exit_status(number: int) -> int:
    """Return the exit status of a process that a signal ended, as shells have it."""
    return 128 + number


def name_of(number: int) -> str:
    """Return the name of a signal, such as ``"SIGTERM"``."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Stopped(SystemExit):
    """Raised where a signal stops a process; uncaught, the process ends with the right status.

    Args:
        number: The number of the signal.
        checkpoint: The checkpoint that was written for it.
        code: The exit status; by default 128 and the number.
    """

    def __init__(
        self, number: int, checkpoint: Path | None = None, code: int | None = None
    ) -> None:
        super().__init__(exit_status(number) if code is None else code)
        self.number = number
        self.checkpoint = checkpoint

    def __reduce__(self) -> tuple[Any, ...]:  # a worker hands it to its parent
        return type(self), (self.number, self.checkpoint, self.code)


class Listener:
    """The one listener of a process.

    Attributes:
        number: The signal that came first; ``None`` before there is one.
        grace: Seconds from that signal to the end of the process.
        waits: Whether a signal is only noted, because a run will read it after its step.
        commanded: Whether the command listens, in which case it also says what comes next.
        obeys: Whether the process ends with a parent that decides; repeated signals count once.
        superior: The process that a signal is handed to, if this one is one of its ranks.
        jobs: Returns the processes of the jobs that this process has started.
        last_words: Called before the process is ended from outside of its main thread.
    """

    def __init__(self) -> None:
        self.commanded = False
        self.obeys = False
        self.superior: int | None = None
        self.reset()

    def reset(self) -> None:
        """Forget an earlier signal."""
        self.number: int | None = None
        self.grace = GRACE
        self.waits = False
        self.jobs: Callable[[], Iterable[int]] = tuple
        self.last_words: list[Callable[[int], None]] = []
        self._process = os.getpid()
        self._since = 0.0
        self._told: set[int] = set()
        self._over: threading.Event | None = None

    def arrived(self, number: int, frame: FrameType | None = None) -> None:
        """Handle a signal.

        Args:
            number: The signal.
            frame: Where the main thread was.

        Raises:
            Stopped: If nothing has to be finished.
            KeyboardInterrupt: At the second Ctrl-C.
        """
        if os.getpid() != self._process:
            forked(number)
            return
        now = time.monotonic()
        if self.superior is not None and not self.waits:
            with suppress(OSError):  # it has ended, and so will this process
                os.kill(self.superior, number)
            return
        if self.number is not None:
            if now - self._since >= TWICE and not self.obeys:
                self._at_once(number)
            return
        self.number, self._since = int(number), now
        self.count_down(number)
        if self.waits or self._tell_jobs():
            return
        raise Stopped(self.number)

    def count_down(self, number: int) -> None:
        """Start the grace period of a signal, unless one has begun."""
        if self._over is None:
            self._over = threading.Event()
            arguments = (self._over, int(number), time.monotonic())
            threading.Thread(target=self._end_in_time, args=arguments, daemon=True).start()

    def forget_the_time(self) -> None:
        """Stop the countdown: the process goes on by itself."""
        if self._over is not None:
            self._over.set()
            self._over = None

    def _end_in_time(self, over: threading.Event, number: int, since: float) -> None:
        longer = 0.0
        while not over.wait(0.1):
            if self._tell_jobs() and not self.obeys:
                longer = LONGER
            if time.monotonic() >= since + self.grace + longer:
                self._end_now(number)

    def _end_now(self, number: int) -> None:
        for say in self.last_words:
            with suppress(Exception):
                say(number)
        with suppress(Exception):
            import multiprocessing

            for child in multiprocessing.active_children():  # such as the workers of the data
                child.kill()
        with suppress(Exception):
            sys.stderr.flush()
        os._exit(exit_status(number))

    def _tell_jobs(self) -> bool:
        """Tell every job once to end, and return whether there is one.

        It is SIGTERM for all: submitit has a use of its own for another signal.
        """
        if self.number is None:
            return False
        found = False
        for job in list(self.jobs()):
            if job == os.getpid():
                continue
            found = True
            if job not in self._told:
                self._told.add(job)
                with suppress(OSError):
                    os.kill(job, signal.SIGTERM)
        return found

    def _at_once(self, number: int) -> None:
        """End without finishing anything, at a second signal."""
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def take(self, leave: Iterable[int] = ()) -> dict[int, Any]:
        """Handle the signals that have no handler of the user's own.

        Ignored signals stay ignored (``nohup``). So do handlers of others, except around SIGTERM
        within a run, where Lightning's handler would end the run without a checkpoint.

        Args:
            leave: Signals that are not touched.

        Returns:
            The handlers that were replaced; empty outside of the main thread, where no handler can
            be set.
        """
        replaced: dict[int, Any] = {}
        self._process = os.getpid()
        if threading.current_thread() is not threading.main_thread():
            return replaced
        for number in SIGNALS:
            if number in leave:
                continue
            standing = signal.getsignal(number)
            if is_free(standing, number):
                replaced[number] = standing
                signal.signal(number, Chain(self.arrived, others_within(standing)))
        return replaced

    def release(self, numbers: Iterable[int]) -> None:
        """Set signals back to what they do by themselves, so that others can handle them."""
        for number in numbers:
            if isinstance(signal.getsignal(number), Chain):
                signal.signal(number, signal.SIG_DFL)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals, for as long as the block runs; then all is as it was."""
        if self.commanded:
            yield
            return
        self.reset()
        replaced = self.take()
        self.commanded = True
        try:
            with woken(SIGNALS, self.count_down):
                yield
        finally:
            self.commanded = False
            self.forget_the_time()
            for number, handler in replaced.items():
                signal.signal(number, handler)
            self.reset()


LISTENER = Listener()
"""That of this process."""
