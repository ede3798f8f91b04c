"""Handlers of signals: whose they are, which may be replaced, and a thread that hears of them."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

__all__ = ["Chain", "forked", "is_free", "others_within", "woken"]


def forked(number: int) -> None:
    """Handle a signal in a process that was forked: it ends with its parent, or when it is told to.

    A whole group gets the signal of a terminal, and a run needs its data for the step that is open.
    """
    if number == signal.SIGTERM:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


class Chain:
    """A handler: the listener, then those that Lightning would have called as well.

    Args:
        listener: Called with the number and the frame.
        others: The same.
    """

    def __init__(self, listener: Callable[..., None], others: list[Callable[..., Any]]) -> None:
        self.listener = listener
        self.others = others

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        try:
            self.listener(number, frame)
        finally:
            for other in self.others:
                other(number, frame)


def is_free(handler: Any, number: int) -> bool:
    """Whether a signal may be taken from its handler.

    Args:
        handler: The handler.
        number: The signal.
    """
    if handler is signal.SIG_DFL or handler is signal.default_int_handler:
        # a notebook and an interactive Python go on after Ctrl-C
        return not (number == signal.SIGINT and hasattr(sys, "ps1"))
    if isinstance(handler, Chain):
        return False
    return type(handler).__name__ == "_HandlersCompose" or _bypasses(handler)


def _bypasses(handler: Any) -> bool:
    """Whether a handler is submitit's for SIGTERM, which only says that it ignores the signal."""
    module = str(getattr(handler, "__module__", ""))
    return module.startswith("submitit.") and getattr(handler, "__name__", "") == "bypass"


def others_within(handler: Any) -> list[Callable[..., Any]]:
    """Return the user's own handlers within one that Lightning has made of them and its own.

    Args:
        handler: The handler.
    """
    found: list[Callable[..., Any]] = []
    for part in getattr(handler, "signal_handlers", []):
        owner = type(getattr(part, "__self__", None)).__name__
        if isinstance(part, Chain):
            found += part.others
        elif callable(part) and owner != "_SignalConnector" and not _bypasses(part):
            found.append(part)
    return found


@contextmanager
def woken(numbers: Sequence[int], call: Callable[[int], None]) -> Iterator[None]:
    """Call a function from a thread, as soon as a signal is there that this module handles.

    A handler waits until the main thread is back in Python, which may be never.

    Args:
        numbers: The signals.
        call: Called with the number.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    before = signal.set_wakeup_fd(ours.fileno(), warn_on_full_buffer=False)
    if before != -1:  # an event loop has it
        signal.set_wakeup_fd(before)
        ours.close()
        theirs.close()
        yield
        return

    def read() -> None:
        while received := theirs.recv(64):
            for number in received:
                if number in numbers and isinstance(signal.getsignal(number), Chain):
                    call(number)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    _awake.add(ours.fileno())
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        _awake.clear()
        ours.shutdown(socket.SHUT_RDWR)  # ends the thread, although a forked process has it open
        thread.join(1.0)
        ours.close()
        theirs.close()


_awake: set[int] = set()


def _let_the_parent_sleep() -> None:
    """Let signals of a forked process wake nobody in its parent."""
    if _awake:
        _awake.clear()
        with suppress(ValueError):
            signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_the_parent_sleep)
