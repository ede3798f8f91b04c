"""Texts given as lists, and removal of repeated texts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_peft.data.labelled_texts import LABEL, labelled_texts, table_of_lists
from lightning_peft.data.labels_file import LabelsFile
from lightning_peft.data.split_names import known_splits, split_of
from lightning_peft.errors import DataError, near, shown

__all__ = ["from_lists", "listed", "parted", "without_repeats"]

MOST_TOLD = 10
WRITTEN = ("token_classification", "seq2seq")
"""The tasks in which the same text may have another label, as it has in published data."""

log = logging.getLogger(__name__)


def from_lists(
    texts: Sequence[Any], labels: Sequence[Any], splits: Sequence[str] | None, *, task: str | None
) -> LabelsFile:
    """Take texts and labels of any task from lists.

    Args:
        texts: Strings, pairs of strings, or lists of words.
        labels: The label of each, by its task.
        splits: The split of each, or None.
        task: The task; None finds it.

    Raises:
        DataError: Listing all problems.
    """
    if task == "token_classification" or (
        task is None and labels and all(isinstance(row, list | tuple) for row in [*texts, *labels])
    ):
        table = table_of_lists(texts, labels, splits, ())
        return labelled_texts(table, task="token_classification", columns=[LABEL])
    firsts, seconds = parted(texts)
    classes = all(isinstance(label, str | int) for label in labels) or (
        # a mixture of both is one of classes with a mistake
        any(isinstance(label, str) for label in labels)
    )
    if task in ("multiclass", "binary") or (task is None and classes):
        return listed(firsts, labels, splits, task=task, pairs=seconds)
    table = table_of_lists(firsts, labels, splits, seconds)
    return labelled_texts(table, task=task, columns=[LABEL], pair="pair" if seconds else None)


def parted(texts: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Return the first and the second texts of pairs; no second ones of single texts.

    Raises:
        DataError: If some are pairs and others are not.
    """
    pairs = [isinstance(text, list | tuple) and len(text) == 2 for text in texts]
    if not any(pairs):
        return list(texts), []
    if not all(pairs):
        at = pairs.index(False)
        raise DataError(
            f"Expected pairs of texts everywhere, got {shown(texts[at], 40)} as text {at}."
        )
    return [text[0] for text in texts], [text[1] for text in texts]


def listed(
    texts: Sequence[str],
    labels: Sequence[str | int],
    splits: Sequence[str] | None,
    *,
    task: str | None,
    pairs: Sequence[str] = (),
) -> LabelsFile:
    """Turn lists into the table that a labels file would give.

    Args:
        texts: The texts.
        labels: The class of each, all as names or all as numbers from 0.
        splits: The split of each, or None.
        task: ``"multiclass"`` or ``"binary"``; None is the first.
        pairs: The second text of each, or nothing.

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
        for i, text in enumerate([*texts, *pairs])
        if not isinstance(text, str) or not text.strip()
    ]
    meant = {split: split_of(split) if isinstance(split, str) else None for split in splits or ()}
    wrong += [
        f"split {shown(split, 40)}. {near(str(split).lower(), known_splits())}"
        for split, found in meant.items()
        if found is None
    ]
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
    if not wrong and (len(names) < 2 or (task == "binary" and len(names) != 2)):
        wrong.append(f"expected {'2' if task == 'binary' else '2 or more'} classes, got {names}")
    if wrong:
        more = [f"and {len(wrong) - MOST_TOLD} more"] if len(wrong) > MOST_TOLD else []
        raise DataError("Unusable lists: " + "; ".join([*wrong[:MOST_TOLD], *more]) + ".")
    numbered = tuple(int(v) if numbers else names.index(str(v)) for v in labels)
    return LabelsFile(
        Path("lists"), task or "multiclass", names, tuple(texts), numbered,
        tuple(str(meant[split]) for split in splits or ()),
        "texts", tuple(pairs),
    )  # fmt: skip


def without_repeats(table: LabelsFile) -> LabelsFile:
    """Drop repeated texts, which could otherwise be in both training and test.

    A text may have several targets, and the same words other tags: of these the first is kept, or
    all of them if the file says which split they are in; a message counts those in several.

    Args:
        table: Texts and labels.

    Returns:
        The table with each text once; the number of dropped lines is logged.

    Raises:
        DataError: If a text has several labels, or is in several splits.
    """
    first: dict[str, int] = {}
    keys = table.keys
    for index, key in enumerate(keys):
        first.setdefault(key, index)
    if len(first) == len(keys):
        return table
    if table.task in WRITTEN and table.splits:
        _tell_shared(table)
        return table
    wrong = []
    for index, key in enumerate(keys):
        one = first[key]
        if table.task not in WRITTEN and table.labels[index] != table.labels[one]:
            wrong.append(
                f"texts {one} and {index} are the same with other labels: {shown(key, 40)}"
            )
        elif table.splits and table.splits[index] != table.splits[one]:
            both = f"{table.splits[one]} and {table.splits[index]}"
            wrong.append(f"texts {one} and {index} are the same, in {both}: {shown(key, 40)}")
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
    return table.chosen(kept)


def _tell_shared(table: LabelsFile) -> None:
    seen = {k for k, s in zip(table.keys, table.splits, strict=True) if s == "train"}
    held = [k for k, s in zip(table.keys, table.splits, strict=True) if s != "train"]
    shared = sum(key in seen for key in held)
    if shared:
        log.warning(
            "%d of %d texts for validation and test are training texts, too, as %s has it",
            shared, len(held), table.path,
        )  # fmt: skip
