"""What a classifier got right and wrong, class by class."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor

from lightning_peft.errors import DataError

__all__ = ["ClassScores", "Evaluation", "per_class_table"]


@dataclasses.dataclass(frozen=True)
class ClassScores:
    """How well one class is recognised; every score is in [0, 1].

    Attributes:
        name: Name of the class.
        precision: Part of the images called this class that are of it; 0 if none was called so.
        recall: Part of the images of this class that were called so; 0 if there is none.
        f1: Harmonic mean of both; 0 if both are.
        support: Number of images of this class.
    """

    name: str
    precision: float
    recall: float
    f1: float
    support: int


def per_class_table(
    confusion: Tensor, class_names: Sequence[str] | None = None
) -> tuple[ClassScores, ...]:
    """Work out precision, recall and F1 of each class.

    Args:
        confusion: Counts, shape ``(C, C)``: rows are the true, columns the predicted classes.
        class_names: Name of each class; its number by default.

    Returns:
        One entry for each class.

    Raises:
        DataError: If the matrix is not square, or the names are not as many as its rows.

    >>> import torch
    >>> [row.recall for row in per_class_table(torch.tensor([[3, 1], [0, 4]]))]
    [0.75, 1.0]
    """
    if confusion.dim() != 2 or confusion.shape[0] != confusion.shape[1]:
        raise DataError(f"Expected a square confusion matrix, got shape {tuple(confusion.shape)}.")
    names = [str(i) for i in range(len(confusion))] if class_names is None else list(class_names)
    if len(names) != len(confusion):
        raise DataError(f"Expected {len(confusion)} class names, got {len(names)}: {names}.")
    counts = confusion.double()
    right = counts.diagonal()
    called, support = counts.sum(0), counts.sum(1)
    precision = right / called.clamp(min=1)
    recall = right / support.clamp(min=1)
    f1 = 2 * right / (called + support).clamp(min=1)
    columns = (precision.tolist(), recall.tolist(), f1.tolist(), support.int().tolist())
    return tuple(
        ClassScores(name, p, r, f, n) for name, p, r, f, n in zip(names, *columns, strict=True)
    )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What testing a classifier found.

    Attributes:
        metrics: Accuracy, macro F1 and calibration error, by the name under which each is logged
            (``"test/accuracy"`` ...).
        classes: Scores of each class.
        confusion: Counts, shape ``(C, C)``: rows are the true, columns the predicted classes.
    """

    metrics: dict[str, float]
    classes: tuple[ClassScores, ...]
    confusion: Tensor

    def write_csv(self, folder: str | Path) -> tuple[Path, Path]:
        """Write ``per_class.csv`` and ``confusion.csv``.

        Args:
            folder: Where to; it is made if it does not exist.

        Returns:
            The two files.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        fields = [field.name for field in dataclasses.fields(ClassScores)]
        names = [row.name for row in self.classes]
        table = _write(
            folder / "per_class.csv", fields, (dataclasses.astuple(row) for row in self.classes)
        )
        rows = zip(names, self.confusion.tolist(), strict=True)
        matrix = _write(
            folder / "confusion.csv",
            ["true \\ predicted", *names],
            ([name, *counts] for name, counts in rows),
        )
        return table, matrix


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path
