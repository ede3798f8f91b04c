"""The arguments of the data module of texts, checked before anything is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_peft.data.labelled_texts import TEXT_TASKS
from lightning_peft.errors import DataError

__all__ = ["check_arguments"]


def check_arguments(
    root: Any,
    backbone: Any,
    texts: Any,
    labels: Any,
    splits: Any,
    augment: Any,
    task: Any,
    *,
    fractions: Mapping[str, float],
    counts: Mapping[str, int | None],
) -> None:
    """Refuse invalid arguments, all at once."""
    wrong = [f"{k} in [0, 1), got {v}" for k, v in fractions.items() if not 0 <= v < 1]
    wrong += [f"{k} of 1 or more, got {v}" for k, v in counts.items() if v is not None and v < 1]
    if (root is None) == (texts is None):
        wrong.append(f"either root or texts, got {'neither' if root is None else 'both'}")
    if texts is not None and labels is None:
        wrong.append("labels beside the texts, got none")
    if texts is None and (labels is not None or splits is not None):
        wrong.append("texts beside labels and splits, got none")
    if backbone is None or not (isinstance(backbone, str) or hasattr(backbone, "pad")):
        wrong.append(
            "backbone as the name of a Hugging Face model, its directory or a tokeniser, got "
            f"{type(backbone).__name__}"
        )
    if task is not None and task not in TEXT_TASKS:
        wrong.append(f"a task out of {', '.join(TEXT_TASKS)}, got {task!r}")
    if augment is not None:
        wrong.append("no augmentation, which is for images, got one (augment=none on the command)")
    if wrong:
        raise DataError("Expected " + "; ".join(wrong) + ".")
