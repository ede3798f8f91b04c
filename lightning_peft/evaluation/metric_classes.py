"""Metrics that torchmetrics has not, or defines otherwise where images say nothing of a class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import (
    BinaryAUROC,
    BinaryAveragePrecision,
    BinaryStatScores,
    MulticlassAUROC,
    MulticlassStatScores,
    MultilabelAveragePrecision,
    MultilabelStatScores,
)
from torchmetrics.regression import SpearmanCorrCoef
from torchmetrics.utilities import dim_zero_cat

from lightning_peft.evaluation.calibration import calibration_error, confidences, label_errors
from lightning_peft.evaluation.metric_names import Task
from lightning_peft.evaluation.tables import correlation, explained

__all__ = [
    "R2",
    "BalancedAccuracy",
    "BinaryBalancedAccuracy",
    "CalibrationError",
    "Gathered",
    "Pearson",
    "SeenAUROC",
    "SeenBinaryAP",
    "SeenBinaryAUROC",
    "SeenBinaryF1",
    "SeenMAP",
    "SeenMultilabelF1",
    "VaryingSpearman",
]


class Gathered(Metric):
    """Collects the outputs and targets of all images, over all batches and ranks."""

    is_differentiable = False
    higher_is_better: bool | None = None
    full_state_update = False
    outputs: list[Tensor]
    targets: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("outputs", [], dist_reduce_fx="cat")
        self.add_state("targets", [], dist_reduce_fx="cat")

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch: ``(B, K)`` and ``(B, ...)``."""
        self.outputs.append(outputs.detach())
        self.targets.append(targets.detach())

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return all outputs and targets, on the CPU."""
        return tuple(  # type: ignore[return-value]
            (found if isinstance(found, Tensor) else torch.cat(found)).cpu()
            for found in (self.outputs, self.targets)
        )


class BalancedAccuracy(MulticlassStatScores):
    """The mean of the recalls of the classes that have images; NaN if none has."""

    higher_is_better = True

    def compute(self) -> Tensor:
        """Return the value, in [0, 1]."""
        hits, _, _, missed = self._final_state()
        return (hits / (hits + missed)).nanmean()


class BinaryBalancedAccuracy(BinaryStatScores):
    """The mean of the recalls of both classes, or that of the one that has images."""

    higher_is_better = True

    def compute(self) -> Tensor:
        """Return the value, in [0, 1]."""
        hits, false, rejected, missed = self._final_state()
        return torch.stack([hits / (hits + missed), rejected / (rejected + false)]).nanmean()


class SeenBinaryF1(BinaryStatScores):
    """F1 of class 1, which is NaN and not 0 if no image is of it nor called it."""

    higher_is_better = True

    def compute(self) -> Tensor:
        """Return the value, in [0, 1]."""
        hits, false, _, missed = self._final_state()
        return 2 * hits / (2 * hits + false + missed)


class SeenMultilabelF1(MultilabelStatScores):
    """F1 of the labels that some image has or is called: their mean, or of all calls together."""

    higher_is_better = True

    def compute(self) -> Tensor:
        """Return the value, in [0, 1]; NaN if no image has or is called any label."""
        hits, false, _, missed = self._final_state()
        if self.average == "micro":
            hits, false, missed = hits.sum(), false.sum(), missed.sum()
        return (2 * hits / (2 * hits + false + missed)).nanmean()


class SeenAUROC(MulticlassAUROC):
    """The one-against-rest AUROC, averaged over the classes that have images; NaN if none has."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average=None)

    def compute(self) -> Tensor:  # type: ignore[override]
        """Return the value, in [0, 1]."""
        labels = dim_zero_cat(self.target)
        count = torch.bincount(labels, minlength=self.num_classes)
        seen = (count > 0) & (count < len(labels))
        return super().compute()[seen].mean()


class SeenBinaryAUROC(BinaryAUROC):
    """The AUROC, which is NaN and not 0 if one of the classes has no images."""

    def compute(self) -> Tensor:  # type: ignore[override]
        """Return the value, in [0, 1]."""
        labels = dim_zero_cat(self.target)
        return super().compute() if 0 < labels.sum() < len(labels) else _nan(labels)


class SeenBinaryAP(BinaryAveragePrecision):
    """The average precision, which is NaN and not 0 if no image is of class 1."""

    def compute(self) -> Tensor:  # type: ignore[override]
        """Return the value, in [0, 1]."""
        labels = dim_zero_cat(self.target)
        return super().compute() if labels.sum() else _nan(labels)


class SeenMAP(MultilabelAveragePrecision):
    """The average precision, averaged over the labels that some image has; NaN without any."""

    def __init__(self, num_labels: int) -> None:
        super().__init__(num_labels, average=None)

    def compute(self) -> Tensor:  # type: ignore[override]
        """Return the value, in [0, 1]."""
        return super().compute()[dim_zero_cat(self.target).sum(0) > 0].mean()


class CalibrationError(Gathered):
    """The expected calibration error over right-closed bins; for labels the mean of theirs.

    This replaces torchmetrics', which puts a confidence of exactly 1 into a bin of its own.
    """

    higher_is_better = False

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add a batch of probabilities and true labels."""
        if self.task == "multiclass":  # one number for each image, however many classes
            probabilities, labels = confidences(self.task, probabilities, labels)
        super().update(probabilities, labels)

    def compute(self) -> Tensor:  # type: ignore[override]
        """Return the value, in [0, 1]."""
        found, truth = super().compute()
        if self.task == "multilabel":
            error = torch.tensor(label_errors(found, truth)).mean()
        else:
            error = calibration_error(found, truth).float()
        return error.to(self.device)


class R2(Gathered):
    """R2, the mean over the outputs; NaN if one of them does not vary.

    This replaces torchmetrics', which takes a sum of squares below 1e-4 for 0: of small numbers,
    such as metres of a cell, R2 is then 1 or 0.
    """

    higher_is_better = True

    def compute(self) -> Tensor:  # type: ignore[override]
        """Return the value, at most 1."""
        found, truth = (part.reshape(len(part), -1) for part in super().compute())
        return explained(found, truth).mean().float().to(self.device)


class Pearson(Gathered):
    """Pearson's correlation, the mean over the outputs; NaN if one of them does not vary.

    This replaces torchmetrics', which of numbers that are all equal divides by rounding.
    """

    higher_is_better = True

    def compute(self) -> Tensor:  # type: ignore[override]
        """Return the value, in [-1, 1]."""
        found, truth = (part.reshape(len(part), -1) for part in super().compute())
        return correlation(found, truth).mean().float().to(self.device)


class VaryingSpearman(SpearmanCorrCoef):
    """The rank correlation, which is NaN and not 0 where the numbers do not vary."""

    def compute(self) -> Tensor:
        """Return the value of each output."""
        numbers = [dim_zero_cat(self.preds), dim_zero_cat(self.target)]
        if any(bool((part == part[0]).all(0).any()) for part in numbers):
            return _nan(numbers[0])
        return super().compute()


def _nan(like: Tensor) -> Tensor:
    return torch.full((), float("nan"), device=like.device)
