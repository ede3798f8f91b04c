"""The results of a test, by class, label or number."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_peft.evaluation.bootstrap import Interval, intervals
from lightning_peft.evaluation.calibration import (
    ReliabilityBin,
    confidences,
    expected_error,
    label_errors,
    reliability,
)
from lightning_peft.evaluation.csv_rows import RowWriter
from lightning_peft.evaluation.outputs import Outputs
from lightning_peft.evaluation.tables import (
    ClassScores,
    LabelScores,
    NumberScores,
    per_class_table,
    per_label_table,
    per_number_table,
)
from lightning_peft.evaluation.weighted import statistics_of
from lightning_peft.system.atomic import written_whole

__all__ = [
    "ClassScores",
    "Evaluation",
    "LabelScores",
    "NumberScores",
    "classified",
    "per_class_table",
    "per_label_table",
    "per_number_table",
]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The results of a test.

    Attributes:
        metrics: Every metric of the task, by the name under which it is logged
            (``"test/accuracy"`` ...).
        classes: Scores of each class or label; empty for numbers.
        confusion: Counts, shape ``(C, C)``: rows are the true, columns the predicted classes;
            None if classes do not exclude each other.
        task: The task.
        outputs: The predictions for each image: for ``"multiclass"`` the class, its probability,
            and its probability before calibration ``(N, 3)``; otherwise the logits, or the
            numbers in their unit ``(N, K)``; of tagged words the counts of each text.
        targets: The true value of each image: ``(N,)`` or ``(N, K)``.
        temperature: The divisor of logits.
        numbers: Errors of each number of a regression.
    """

    metrics: dict[str, float]
    classes: tuple[ClassScores, ...] = ()
    confusion: Tensor | None = None
    task: str = "multiclass"
    outputs: Tensor = dataclasses.field(default_factory=lambda: torch.empty(0, 3))
    targets: Tensor = dataclasses.field(default_factory=lambda: torch.empty(0).long())
    temperature: float = 1.0
    numbers: tuple[NumberScores, ...] = ()

    def reliability(self, *, calibrated: bool = True) -> tuple[ReliabilityBin, ...]:
        """Return the bins of a reliability diagram; empty for a regression and for tags.

        Args:
            calibrated: Whether to take probabilities after the division by the temperature.
        """
        if self.task in ("regression", "token_classification") or not len(self.outputs):
            return ()
        if self.task == "multiclass":
            right = self.outputs[:, 0].long() == self.targets
            return reliability(self.outputs[:, 1 if calibrated else 2], right)
        read = self._outputs(calibrated)
        return reliability(*confidences(read.task, read(self.outputs), self.targets))

    def calibration_error(self, *, calibrated: bool = True) -> float:
        """Return the expected calibration error; the mean over labels, NaN without probabilities.

        Args:
            calibrated: Whether to take probabilities after the division by the temperature.
        """
        if self.task in ("regression", "token_classification") or not len(self.outputs):
            return float("nan")
        if self.task != "multilabel":
            return expected_error(self.reliability(calibrated=calibrated))
        read = self._outputs(calibrated)
        errors = label_errors(read(self.outputs), self.targets)
        return sum(errors) / len(errors)

    def intervals(
        self, *, replicates: int = 1000, level: float = 0.95, seed: int = 0
    ) -> dict[str, Interval]:
        """Return percentile bootstrap intervals of the main metrics, over the test images.

        Args:
            replicates: Number of resamples.
            level: Fraction of the resamples inside the interval.
            seed: Seed of the draws.

        Returns:
            The lower and upper end, by the names of ``metrics``.
        """
        outputs = self.outputs[:, :2]
        if self.task in ("regression", "token_classification"):
            outputs = self.outputs
        elif self.task != "multiclass":
            probabilities = self._outputs(True)(self.outputs)
            outputs = probabilities[:, 1:] if self.task == "binary" else probabilities
        statistics = statistics_of(self.task, outputs, self.targets, len(self.classes))
        found = intervals(
            statistics, len(self.targets), replicates=replicates, level=level, seed=seed
        )
        return {f"test/{name}": ends for name, ends in found.items()}

    def _outputs(self, calibrated: bool) -> Outputs:
        task: Any = self.task
        return Outputs(task, self.temperature if calibrated else 1.0)

    def write_csv(self, folder: str | Path) -> tuple[Path, ...]:
        """Write the tables of the task.

        ``per_class.csv``, ``confusion.csv`` and ``reliability.csv`` for classes; ``per_label.csv``
        and ``reliability.csv`` for labels; ``per_number.csv`` for numbers; ``per_class.csv`` for
        the types of entities, or for tags.

        Args:
            folder: The folder; created if it does not exist.

        Returns:
            The paths of the files.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        name = {"multilabel": "per_label", "regression": "per_number"}.get(self.task, "per_class")
        kind = {"multilabel": LabelScores, "regression": NumberScores}.get(self.task, ClassScores)
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
    """Compute the tables of a test with classes.

    Args:
        read: How the outputs are converted.
        scores: The metrics.
        outputs: As in :class:`Evaluation`.
        targets: As in :class:`Evaluation`.
        num_classes: Number of classes.
        names: Name of each class.

    Returns:
        The results.
    """
    if read.task == "multilabel":
        labels = per_label_table(read(outputs), targets, names)
        return Evaluation(scores, labels, None, read.task, outputs, targets, read.temperature)
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
    with (
        written_whole(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = RowWriter(file, "\r\n")
        writer.writerow(header)
        writer.writerows(rows)
    return path
