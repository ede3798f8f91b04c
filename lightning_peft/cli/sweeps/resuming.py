"""Say how a single run that a full disk ended goes on."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from lightning_peft.cli.sweeps.earlier import LAST
from lightning_peft.cli.sweeps.record import quoted
from lightning_peft.system.atomic import lacks_room

__all__ = ["how_to_resume"]

OWN = ("hydra.run.dir=", "resume=")
"""Overrides that the hint gives itself."""


def how_to_resume(directory: Path, args: Sequence[str], error: BaseException) -> str:
    """Return the command that resumes a run after there is room; ``""`` for any other error.

    Args:
        directory: The directory of the run.
        args: The flags and overrides that it was started with.
        error: What ended it.
    """
    if lacks_room(error) is None:
        return ""
    words = [word for word in args if not word.startswith(OWN)]
    words.append(f"hydra.run.dir={quoted(str(directory))}")
    if (directory / LAST).is_file():
        words.append(f"resume={quoted(str(directory / LAST))}")
    return f"to resume the run: lightning-peft {shlex.join(words)}"
