"""The state that a sweep keeps from its start to its end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["STATE"]


@dataclass
class State:
    """The state of the sweep of this process.

    Attributes:
        directory: Its directory, while it runs.
        failed: How many of its jobs failed, when it is over; for a search, in this start.
        process: The process in which it began; a worker of a launcher has none.
        run: The directories of the single run that is under way, Hydra's and that of its files.
    """

    directory: Path | None = None
    failed: int = 0
    process: int | None = None
    run: tuple[Path, Path] | None = None


STATE = State()
"""Hydra makes the callback from the config and keeps it: this is how the command hears of it."""
