"""What a test found: class by class, label by label or number by number."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_peft.bootstrap import Interval, intervals
from lightning_peft.calibration import ReliabilityBin, confidences, reliability
from lightning_peft.errors import DataError
from lightning_peft.metric_names import Task
from lightning_peft.outputs import Outputs
from lightning_peft.weighted import statistics_of

__all__ = [
    "ClassScores",
    "Evaluation",
    "NumberScores",
    "classified",
    "per_class_table",
    "per_label_table",
    "per_number_table",
]


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


def per_label_table(
    called: Tensor, labels: Tensor, names: Sequence[str] | None = None
) -> tuple[ClassScores, ...]:
    """Work out precision, recall and F1 of labels that do not exclude each other.

    Args:
        called: 1 where an image was given the label, shape ``(N, L)``.
        labels: 1 where it has it, shape ``(N, L)``.
        names: Name of each label; its number by default.

    Returns:
        One entry for each label; ``support`` is the number of images that have it.
    """
    called, labels = called.long(), labels.long()
    shown = [str(k) for k in range(labels.shape[1])] if names is None else names
    rows = []
    for k, name in enumerate(shown):
        counts = torch.bincount(2 * labels[:, k] + called[:, k], minlength=4).view(2, 2)
        rows.append(dataclasses.replace(per_class_table(counts)[1], name=name))
    return tuple(rows)


@dataclasses.dataclass(frozen=True)
class NumberScores:
    """How well one number is predicted, in the unit that it has.

    Attributes:
        name: Name of the number.
        mae: Mean of the absolute error.
        rmse: Root of the mean squared error.
        r2: Part of the variance that is explained; NaN if the number does not vary.
        bias: Mean of prediction less truth.
        support: Number of images.
    """

    name: str
    mae: float
    rmse: float
    r2: float
    bias: float
    support: int


def per_number_table(
    outputs: Tensor, targets: Tensor, names: Sequence[str] | None = None
) -> tuple[NumberScores, ...]:
    """Work out the errors of each number.

    Args:
        outputs: Predictions, shape ``(N, K)``.
        targets: Truth, shape ``(N, K)``.
        names: Name of each number; its place by default.

    Returns:
        One entry for each.
    """
    shown = [str(k) for k in range(targets.shape[1])] if names is None else names
    error = outputs.double() - targets.double()
    squared, variance = error.square().mean(0), targets.double().var(0, correction=0)
    explained = torch.where(variance > 0, 1 - squared / variance, float("nan"))
    columns = [
        found.tolist() for found in (error.abs().mean(0), squared.sqrt(), explained, error.mean(0))
    ]
    return tuple(
        NumberScores(name, mae, rmse, r2, bias, len(targets))
        for name, mae, rmse, r2, bias in zip(shown, *columns, strict=True)
    )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a test found.

    Attributes:
        metrics: Every metric of the task, by the name under which each is logged
            (``"test/accuracy"`` ...).
        classes: Scores of each class or label; empty of numbers.
        confusion: Counts, shape ``(C, C)``: rows are the true, columns the predicted classes;
            None where classes do not exclude each other.
        task: The task.
        outputs: What was predicted of each image: of ``"multiclass"`` the class, its probability,
            and its probability before calibration ``(N, 3)``; otherwise the logits, or the
            numbers in their unit ``(N, K)``.
        targets: What each image is: ``(N,)`` or ``(N, K)``.
        temperature: What logits are divided by.
        numbers: Errors of each number of a regression.
    """

    metrics: dict[str, float]
    classes: tuple[ClassScores, ...] = ()
    confusion: Tensor | None = None
    task: Task = "multiclass"
    outputs: Tensor = dataclasses.field(default_factory=lambda: torch.empty(0, 3))
    targets: Tensor = dataclasses.field(default_factory=lambda: torch.empty(0).long())
    temperature: float = 1.0
    numbers: tuple[NumberScores, ...] = ()

    def reliability(self, *, calibrated: bool = True) -> tuple[ReliabilityBin, ...]:
        """The bins of a reliability diagram; none of a regression.

        Args:
            calibrated: After the division by the temperature, or before.
        """
        if self.task == "regression" or not len(self.outputs):
            return ()
        if self.task == "multiclass":
            right = self.outputs[:, 0].long() == self.targets
            return reliability(self.outputs[:, 1 if calibrated else 2], right)
        read = Outputs(self.task, self.temperature if calibrated else 1.0)
        return reliability(*confidences(self.task, read(self.outputs), self.targets))

    def intervals(
        self, *, replicates: int = 1000, level: float = 0.95, seed: int = 0
    ) -> dict[str, Interval]:
        """Percentile bootstrap intervals of the main metrics, over the test images.

        Args:
            replicates: Number of resamples.
            level: Part of the resamples that lies within.
            seed: Of the draws.

        Returns:
            Lower and upper end, by the names of ``metrics``.
        """
        outputs = self.outputs[:, :2]
        if self.task == "regression":
            outputs = self.outputs
        elif self.task != "multiclass":
            probabilities = Outputs(self.task, self.temperature)(self.outputs)
            outputs = probabilities[:, 1:] if self.task == "binary" else probabilities
        statistics = statistics_of(self.task, outputs, self.targets, len(self.classes))
        found = intervals(
            statistics, len(self.targets), replicates=replicates, level=level, seed=seed
        )
        return {f"test/{name}": ends for name, ends in found.items()}

    def write_csv(self, folder: str | Path) -> tuple[Path, ...]:
        """Write the tables that this task has.

        ``per_class.csv``, ``confusion.csv`` and ``reliability.csv`` of classes; ``per_label.csv``
        and ``reliability.csv`` of labels; ``per_number.csv`` of numbers.

        Args:
            folder: Where to; it is made if it does not exist.

        Returns:
            The files.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        name = {"multilabel": "per_label", "regression": "per_number"}.get(self.task, "per_class")
        kind = NumberScores if self.task == "regression" else ClassScores
        files = [_table(folder / f"{name}.csv", kind, self.numbers or self.classes)]
        if self.confusion is not None:
            names = [row.name for row in self.classes]
            rows = zip(names, self.confusion.tolist(), strict=True)
            header = ["true \\ predicted", *names]
            body = ([name, *counts] for name, counts in rows)
            files.append(_write(folder / "confusion.csv", header, body))
        if bins := self.reliability():
            files.append(_table(folder / "reliability.csv", ReliabilityBin, bins))
        return tuple(files)


def classified(
    read: Outputs,
    scores: dict[str, float],
    outputs: Tensor,
    targets: Tensor,
    num_classes: int,
    names: Sequence[str] | None,
) -> Evaluation:
    """Make the tables of a test with classes.

    Args:
        read: How the outputs are read.
        scores: The metrics.
        outputs: As :class:`Evaluation` has them.
        targets: The same.
        num_classes: Number of classes.
        names: Name of each.

    Returns:
        What the test found.
    """
    if read.task == "multilabel":
        called = read(outputs) > 0.5
        rows, confusion = per_label_table(called, targets, names), None
    else:
        chosen = outputs[:, 0] if read.task == "multiclass" else read(outputs)[:, 1] > 0.5
        pairs = targets.long() * num_classes + chosen.long()
        counts = torch.bincount(pairs, minlength=num_classes**2)
        confusion = counts.view(num_classes, num_classes)
        rows = per_class_table(confusion, names)
    return Evaluation(scores, rows, confusion, read.task, outputs, targets, read.temperature)


def _table(path: Path, kind: type, rows: Sequence[Any]) -> Path:
    fields = [field.name for field in dataclasses.fields(kind)]
    return _write(path, fields, (dataclasses.astuple(row) for row in rows))


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path
