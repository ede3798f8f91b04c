"""Read which classes a tested run confused, from the tables that it left."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lightning_peft.errors import DataError
from lightning_peft.evaluation.results import ClassScores, per_class_table
from lightning_peft.files.plain_file import read_text

__all__ = ["ClassTables", "Mistake", "class_tables"]

FILE = "confusion.csv"

MOST_CLASSES = 1000
"""A file of more classes than this is not read, since no page could show it."""


@dataclass(frozen=True)
class Mistake:
    """Images of one class that were predicted as another.

    Attributes:
        true: The true class.
        called: The predicted class.
        count: The number of images.
        share: Their fraction of the images of the true class.
    """

    true: str
    called: str
    count: int
    share: float


@dataclass(frozen=True)
class ClassTables:
    """A confusion matrix, the scores of each class, and the mistakes.

    Attributes:
        confusion: Counts; rows are the true, columns the predicted classes.
        classes: The scores of each class.
        mistakes: The mistakes, the most frequent first.
    """

    confusion: tuple[tuple[int, ...], ...]
    classes: tuple[ClassScores, ...]
    mistakes: tuple[Mistake, ...]


def class_tables(directory: Path) -> ClassTables | None:
    """Return the confusion matrix of a run, with its scores and mistakes.

    Args:
        directory: The run's directory.

    Returns:
        The tables, or ``None`` if no confusion matrix can be read.
    """
    try:
        with io.StringIO(read_text(directory / FILE), newline="") as file:
            lines = list(csv.reader(file))
        names = lines[0][1:]
        counts = [[int(cell) for cell in line[1:]] for line in lines[1:]]
        if len(names) > MOST_CLASSES or any(count < 0 for row in counts for count in row):
            return None
        matrix = torch.tensor(counts)
        if matrix.is_floating_point():  # an empty table
            return None
        classes = per_class_table(matrix, names)
    except (OSError, ValueError, IndexError, RuntimeError, csv.Error, DataError):
        return None
    return ClassTables(tuple(map(tuple, counts)), classes, tuple(_mistakes(names, counts)))


def _mistakes(names: Sequence[str], counts: Sequence[Sequence[int]]) -> list[Mistake]:
    found = [
        Mistake(names[i], names[j], count, count / sum(row))
        for i, row in enumerate(counts)
        for j, count in enumerate(row)
        if count and i != j
    ]
    return sorted(found, key=lambda mistake: -mistake.count)
