"""Lines for the person who runs, from one process only."""

from __future__ import annotations

from lightning_peft.lightning.namespace import pl_import

__all__ = ["say"]


def say(message: str) -> None:
    """Log a message in one process only."""
    pl_import("utilities.rank_zero").rank_zero_info(message)
