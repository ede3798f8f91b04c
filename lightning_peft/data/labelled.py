"""Splits and statistics of images or texts whose labels are in a file."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Sequence

from lightning_peft.data.image_files import Label
from lightning_peft.data.labels_file import SPLITS, LabelsFile
from lightning_peft.data.splits import divide
from lightning_peft.errors import DataError

__all__ = ["counted", "divided", "mean_and_deviation"]


def divided(
    table: LabelsFile,
    *,
    test_fraction: float,
    val_fraction: float,
    seed: int,
    labels_per_class: int | None,
    val_per_class: int | None = None,
    repeats: Collection[int] = (),
) -> dict[str, list[int]]:
    """Split labelled items as the file says, or by hash if it does not say.

    Classes are split one by one; items with several labels or numbers are split all together.

    Args:
        table: The labels.
        test_fraction: Fraction for the test, if the file has no column ``split``.
        val_fraction: Fraction of the training items for validation, if no line says ``val``.
        seed: Seed of the choice of validation and training items.
        labels_per_class: Training items of each class.
        val_per_class: Validation items of each class instead of a fraction, if no line says
            ``val``.
        repeats: Indices of items that are left out of what is divided.

    Returns:
        The indices of each split.

    Raises:
        DataError: If ``labels_per_class`` is given without classes, there are no training items, or
            a class has none or too few of them.
    """
    classes = table.task in ("multiclass", "binary")
    noun = table.noun
    if labels_per_class is not None and not classes:
        raise DataError(
            f"Expected no labels_per_class for {table.task}, got {labels_per_class}: "
            f"{'an image' if noun == 'images' else 'a text'} has no one class. Leave it out."
        )
    every = range(len(table.files))
    given = table.splits or ("train",) * len(table.files)
    pool = [i for i in every if given[i] == "train" and i not in repeats]
    keys = table.keys
    if not pool:
        raise DataError(f"Expected training {noun}, got none with split 'train' in {table.path}.")
    strata = [int(table.labels[i]) if classes else 0 for i in pool]
    if classes and (absent := sorted(set(range(len(table.names))) - set(strata))):
        missing = ", ".join(f"'{table.names[label]}'" for label in absent)
        raise DataError(
            f"Expected training {noun} of every class, got none of {missing} in {table.path}."
        )
    parts = divide(
        strata,
        [keys[i] for i in pool],
        test_fraction=0.0 if table.splits else test_fraction,
        val_fraction=0.0 if "val" in given else val_fraction,
        seed=seed,
        labels_per_class=labels_per_class,
        class_names=table.names if classes else (f"all {noun}",),
        noun=noun,
        val_per_class=0 if "val" in given else val_per_class,
    )
    chosen = {name: [pool[k] for k in part] for name, part in parts.items()}
    for name in SPLITS[1:]:
        chosen[name] += [i for i in every if given[i] == name]
    return chosen


def counted(labels: Sequence[Label], num_classes: int, task: str) -> list[int]:
    """Count the images of each class or with each label.

    Args:
        labels: The labels of the images.
        num_classes: Number of classes or labels.
        task: The task; numbers, tags and targets are not counted.
    """
    if task in ("regression", "token_classification", "seq2seq"):
        return []
    found = [0] * num_classes
    for label in labels:
        for k in [k for k, yes in enumerate(label) if yes] if isinstance(label, tuple) else [label]:
            found[int(k)] += 1
    return found


def mean_and_deviation(labels: Sequence[Label]) -> tuple[list[float], list[float]]:
    """Return the mean and the standard deviation of each number.

    Args:
        labels: Numbers, or tuples of equally many numbers.
    """
    rows = [label if isinstance(label, tuple) else (float(label),) for label in labels]
    columns = [[row[k] for row in rows] for k in range(len(rows[0]))]
    means = [math.fsum(column) / len(column) for column in columns]
    pairs = zip(columns, means, strict=True)
    return means, [statistics.pstdev(column, mean) for column, mean in pairs]
