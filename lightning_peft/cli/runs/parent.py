"""End with the process that started this one: a rank, or a job of a launcher, is nobody's own.

A process that starts others names itself in the environment. They look from time to time whether it
is still there, which works on every system and for every way to start a process, and however the
parent ended. Lightning starts the ranks, joblib and submitit the jobs, so nothing else could be
handed over to them.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lightning_peft.lightning.signals import LISTENER, exit_status
from lightning_peft.system.environment import variable

__all__ = ["ENVIRONMENT", "alone", "exists", "here", "under_a_parent", "watch_parent"]

ENVIRONMENT = "LIGHTNING_PEFT_PARENT"

OF_A_RANK = "hydra.job.name=train_ddp_process_"
"""What Lightning adds to the command line of a rank that it starts."""

EVERY = 0.5
"""Seconds between two looks."""


def here() -> str:
    """Return what the environment of a child says of this process."""
    return f"{socket.gethostname()}:{os.getpid()}"


def exists(process: int) -> bool:
    """Whether a process of this machine exists, and has not ended without being waited for."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    return state.rpartition(")")[2].split()[:1] != ["Z"]


def _parent() -> int | None:
    """Return the process that started this one, if it is of this command and on this machine."""
    host, _, process = os.environ.get(ENVIRONMENT, "").rpartition(":")
    if host != socket.gethostname() or not process.isdecimal() or int(process) == os.getpid():
        return None
    return int(process)


class _Watch:
    """The thread that looks for the parent."""

    def __init__(self, parent: int, rank: bool) -> None:
        self.parent = parent
        self.rank = rank
        self.process = os.getpid()
        self.direct = os.getppid() == parent  # then it is not, as soon as the parent has ended
        threading.Thread(target=self._look, daemon=True).start()

    def is_over(self) -> bool:
        """Whether the parent has ended."""
        return os.getppid() != self.parent if self.direct else not exists(self.parent)

    def _look(self) -> None:
        while not self.is_over():
            time.sleep(EVERY)
        if self.rank or LISTENER.number is not None:  # alone it can finish nothing, or was told to
            os.kill(self.process, signal.SIGKILL)
        LISTENER.count_down(signal.SIGTERM)
        os.kill(self.process, signal.SIGTERM)


_watch: _Watch | None = None


def watch_parent(words: Sequence[str] = ()) -> None:
    """End with the parent from now on, if this process has one of this command.

    Args:
        words: The command line of this process.
    """
    global _watch
    parent = None if sys.platform == "win32" else _parent()  # there a look ends the process
    if parent is None or (_watch is not None and _watch.process == os.getpid()):
        return
    rank = any(word.startswith(OF_A_RANK) for word in words)
    LISTENER.obeys = True
    LISTENER.superior = parent if rank else None
    _watch = _Watch(parent, rank)


def alone() -> None:
    """End this process if its parent has ended: nobody waits for what it returns."""
    if _watch is not None and _watch.process == os.getpid() and _watch.is_over():
        sys.stderr.flush()
        os._exit(exit_status(signal.SIGTERM))


@contextmanager
def under_a_parent(words: Sequence[str]) -> Iterator[None]:
    """End with the parent, and let those that are started in the block end with this process.

    Args:
        words: The command line of this process.
    """
    watch_parent(words)
    with variable(ENVIRONMENT, here()):
        yield
