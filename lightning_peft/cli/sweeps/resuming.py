"""Say how a single run goes on that a signal or a full disk has ended."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from lightning_peft.cli.sweeps.earlier import LAST
from lightning_peft.cli.sweeps.record import quoted
from lightning_peft.system.atomic import lacks_room

__all__ = ["continuing", "how_to_resume"]

PLAIN = re.compile(r"[\w./+-]+")
"""Values that Hydra's grammar takes as they are."""


def how_to_resume(error: BaseException, words: Sequence[str], directory: Path, output: Path) -> str:
    """Return the command that resumes a run after there is room; ``""`` for any other error.

    Args:
        error: What ended it.
        words: As for :func:`continuing`.
        directory: As for :func:`continuing`.
        output: As for :func:`continuing`.
    """
    if lacks_room(error) is None:
        return ""
    return f"to resume the run: {continuing(words, directory, output)}"


def continuing(words: Sequence[str], directory: Path, output: Path) -> str:
    """Return the command that continues a single run.

    Args:
        words: The words of its command line.
        directory: Its directory, as Hydra has it.
        output: Where its files are.
    """
    last = output / LAST
    ours = ("hydra.run.dir=", "resume=") if last.is_file() else ("hydra.run.dir=",)
    kept = [word for word in words if not word.lstrip("+").startswith(ours)]
    if last.is_file():
        kept.append(f"resume={_value(last)}")
    return shlex.join(["lightning-peft", *kept, f"hydra.run.dir={_value(directory)}"])


def _value(path: Path) -> str:
    return str(path) if PLAIN.fullmatch(str(path)) else quoted(str(path))
