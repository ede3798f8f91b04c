"""The errors that lightning-peft raises, and the words they share.

Every one of them says what was expected, what was got and what to do, and is raised before anything
is changed.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from typing import Any

__all__ = [
    "AdapterFileError",
    "BackboneMismatchError",
    "CheckpointError",
    "DataError",
    "ExportError",
    "MethodError",
    "MissingExtraError",
    "PEFTError",
    "ScheduleError",
    "TargetError",
    "near",
    "require",
]


class PEFTError(Exception):
    """Base of every error that lightning-peft raises on purpose."""


class TargetError(PEFTError, ValueError):
    """A selection of modules or layers that does not fit the model."""


class MethodError(PEFTError, ValueError):
    """A method that is unknown, wrongly configured, or cannot serve this backbone."""


class BackboneMismatchError(PEFTError, ValueError):
    """An adapter meets a backbone other than the one it was trained on."""


class AdapterFileError(PEFTError, ValueError):
    """An adapter directory that is missing, truncated, tampered with or of another format."""


class CheckpointError(PEFTError, ValueError):
    """A checkpoint whose keys do not fit the adapted module."""


class ScheduleError(PEFTError, ValueError):
    """A learning-rate schedule that cannot be made for this run."""


class DataError(PEFTError, ValueError):
    """Data that cannot serve the task as it was asked for."""


class ExportError(PEFTError, ValueError):
    """A model that cannot be written in the format that was asked for."""


class MissingExtraError(PEFTError, ImportError):
    """An optional dependency is not installed."""


def near(word: str, options: Iterable[str], *, most: int = 8) -> str:
    """Say which of the options a mistyped word may have meant.

    Args:
        word: What was typed.
        options: What exists.
        most: The number of names listed at most.

    Returns:
        One sentence: the near names, or the known ones where none is near.

    >>> near("lorra", ["lora", "dora", "bitfit"])
    "Did you mean 'lora' or 'dora'?"
    >>> near("xyz", ["lora", "bitfit"])
    'Known: bitfit, lora.'
    """
    known = sorted(set(options))
    # what is longer is no mistyped name, and comparing takes the square of the length
    hits = difflib.get_close_matches(word, known, n=3, cutoff=0.6) if len(word) <= 300 else []
    if hits:
        return "Did you mean " + " or ".join(f"'{hit}'" for hit in hits) + "?"
    if not known:
        return "There is nothing to choose from."
    more = f" and {len(known) - most} more" if len(known) > most else ""
    return f"Known: {', '.join(known[:most])}{more}."


def require(module: str, extra: str) -> Any:
    """Import an optional dependency, or say which extra brings it.

    Args:
        module: The module's import name, such as ``"sklearn.datasets"``.
        extra: The extra of lightning-peft that installs it.

    Returns:
        The imported module.

    Raises:
        MissingExtraError: If the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or module).partition(".")[0]
        if missing != module.partition(".")[0]:
            raise  # the package is there, something that it needs is not: its own error says more
        raise MissingExtraError(
            f"`{missing}` is needed for this and is not installed. "
            f"Install it with: pip install 'lightning-peft[{extra}]'"
        ) from error
