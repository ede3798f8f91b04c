"""The arguments of :class:`~lightning_peft.ImageFolderDataModule`, before anything is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_peft.errors import DataError, near

__all__ = ["check_arguments"]

LEVELS = ("header", "decode", "none")


def check_arguments(
    labels: str | Path | None,
    task: str | None,
    *,
    fractions: Mapping[str, float],
    val_per_class: int | None,
    verify: str,
    value_range: Sequence[float] | None,
    of_table: Mapping[str, Any],
) -> None:
    """Refuse arguments that are out of their range, or have no effect together.

    Args:
        labels: The labels file, if there is one.
        task: The kind of labels, if it is given.
        fractions: Arguments that are in [0, 1), by name.
        val_per_class: Images of each class for validation.
        verify: How files are checked.
        value_range: The values of black and white.
        of_table: Arguments that are for a labels file only, by name.

    Raises:
        DataError: Listing all problems.
    """
    wrong = [
        f"{name} in [0, 1), got {value}" for name, value in fractions.items() if not 0 <= value < 1
    ]
    if val_per_class is not None and val_per_class < 0:
        wrong.append(f"val_per_class of 0 or more, got {val_per_class}")
    if verify not in LEVELS:
        wrong.append(f"verify as one of {LEVELS}, got '{verify}': {near(verify, LEVELS)}")
    if labels is None and task not in (None, "multiclass", "binary"):
        wrong.append(f"a labels file for task='{task}', which folders do not have")
    if labels is not None and val_per_class is not None:
        wrong.append("no val_per_class with a labels file, which may assign val itself")
    if labels is None and (without := [k for k, v in of_table.items() if v is not None]):
        wrong.append(f"a labels file for {' and '.join(without)}")
    if value_range is not None and not (len(value_range) == 2 and value_range[0] != value_range[1]):
        wrong.append(f"value_range as two different numbers, got {list(value_range)}")
    if wrong:
        raise DataError("Expected " + "; ".join(wrong) + ".")
