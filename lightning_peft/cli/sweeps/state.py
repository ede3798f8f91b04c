"""What a sweep hands from its start to its end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["STATE"]


@dataclass
class State:
    """What became of the sweep of this process.

    Attributes:
        directory: Where it is, while it runs.
        failed: How many of its jobs failed, when it is over; of a search, in this start.
        process: The process that it began in; a worker of a launcher has none.
    """

    directory: Path | None = None
    failed: int = 0
    process: int | None = None


STATE = State()
"""Hydra makes the callback from the config and keeps it: this is how the command hears of it."""
