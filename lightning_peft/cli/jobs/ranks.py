"""End the ranks of a job that does not reach its end."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import lightning.pytorch as pl

__all__ = ["PATIENCE", "ending_ranks"]

PATIENCE = 3.0
"""Seconds in which a rank may end by itself, and say what went wrong."""


@contextmanager
def ending_ranks(trainer: pl.Trainer) -> Iterator[None]:
    """End the ranks that a trainer has started, if the block ends with an exception.

    A rank that waits for another one does so for minutes: for a connection that nobody accepts, or
    in a collective operation. Lightning ends the others only where a rank fails that is not the
    first, and then it kills the first with them, and a whole sweep with it.

    Args:
        trainer: The trainer.
    """
    try:
        yield
    except BaseException:
        launcher: Any = trainer.strategy.launcher
        processes = list(getattr(launcher, "procs", ()))
        if processes:
            launcher.procs.clear()  # Lightning's observer has nothing to kill this process for
            _end(processes)
        raise


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    end = time.monotonic() + PATIENCE
    for process in processes:
        try:
            process.wait(max(end - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            with suppress(OSError):
                process.kill()
            process.wait()
