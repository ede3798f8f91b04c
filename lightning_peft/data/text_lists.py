"""Texts given as lists, and removal of repeated texts."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from lightning_peft.data.labels_file import SPLITS, LabelsFile
from lightning_peft.errors import DataError, near, shown
from lightning_peft.evaluation.metric_names import Task

__all__ = ["listed", "without_repeats"]

MOST_TOLD = 10

log = logging.getLogger(__name__)


def listed(
    texts: Sequence[str],
    labels: Sequence[str | int],
    splits: Sequence[str] | None,
    *,
    task: Task | None,
) -> LabelsFile:
    """Turn lists into the table that a labels file would give.

    Args:
        texts: The texts.
        labels: The class of each, all as names or all as numbers from 0.
        splits: The split of each, or None.
        task: ``"multiclass"`` or ``"binary"``; None is the first.

    Returns:
        The table; its ``path`` says that there is no file.

    Raises:
        DataError: Listing all problems.
    """
    wrong = []
    for name, values in (("labels", labels), ("splits", texts if splits is None else splits)):
        if len(values) != len(texts):
            wrong.append(f"expected as many {name} as texts, got {len(values)} and {len(texts)}")
    wrong += [
        f"text {i}: expected a non-empty string, got {text!r}"
        for i, text in enumerate(texts)
        if not isinstance(text, str) or not text.strip()
    ]
    for split in sorted(set(splits or ()) - set(SPLITS)):
        wrong.append(f"split '{split}'. {near(split, SPLITS)}")
    numbers = bool(labels) and all(isinstance(label, int) for label in labels)
    if not numbers and not all(isinstance(label, str) for label in labels):
        wrong.append("expected labels that are all names or all numbers, got both or others")
        names: tuple[str, ...] = ()
    elif numbers:
        negative = min(int(label) for label in labels) < 0
        wrong += ["expected numbers of classes from 0, got one below"] if negative else []
        names = tuple(str(k) for k in range(max(int(label) for label in labels) + 1))
    else:
        names = tuple(sorted({str(label) for label in labels}))
    if task not in (None, "multiclass", "binary"):
        wrong.append(f"task='{task}' takes a CSV file: a list has one class for each text")
    elif not wrong and (len(names) < 2 or (task == "binary" and len(names) != 2)):
        wrong.append(f"expected {'2' if task == 'binary' else '2 or more'} classes, got {names}")
    if wrong:
        more = [f"and {len(wrong) - MOST_TOLD} more"] if len(wrong) > MOST_TOLD else []
        raise DataError("Unusable lists: " + "; ".join([*wrong[:MOST_TOLD], *more]) + ".")
    numbered = tuple(int(v) if numbers else names.index(str(v)) for v in labels)
    return LabelsFile(
        Path("lists"), task or "multiclass", names, tuple(texts), numbered, tuple(splits or ()),
        "texts",
    )  # fmt: skip


def without_repeats(table: LabelsFile) -> LabelsFile:
    """Drop repeated texts, which could otherwise be in both training and test.

    Args:
        table: Texts and labels.

    Returns:
        The table with each text once; the number of dropped lines is logged.

    Raises:
        DataError: If a text has several labels, or is in several splits.
    """
    first: dict[str, int] = {}
    for index, text in enumerate(table.files):
        first.setdefault(text, index)
    if len(first) == len(table.files):
        return table
    wrong = []
    for index, text in enumerate(table.files):
        one = first[text]
        if table.labels[index] != table.labels[one]:
            wrong.append(
                f"texts {one} and {index} are the same with other labels: {shown(text, 40)}"
            )
        elif table.splits and table.splits[index] != table.splits[one]:
            both = f"{table.splits[one]} and {table.splits[index]}"
            wrong.append(f"texts {one} and {index} are the same, in {both}: {shown(text, 40)}")
    if wrong:
        more = [f"and {len(wrong) - MOST_TOLD} more"] if len(wrong) > MOST_TOLD else []
        told = "; ".join([*wrong[:MOST_TOLD], *more])
        raise DataError(
            f"Expected each text of {table.path} with one label and in one split, but {told}. "
            "Correct them: testing on training texts is meaningless."
        )
    kept = sorted(first.values())
    log.warning(
        "%d of %d texts are repeats and are dropped", len(table.files) - len(kept), len(table.files)
    )
    return dataclasses.replace(
        table,
        files=tuple(table.files[i] for i in kept),
        labels=tuple(table.labels[i] for i in kept),
        splits=tuple(table.splits[i] for i in kept) if table.splits else (),
    )
