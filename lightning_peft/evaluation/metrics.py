"""The metrics of each task, from torchmetrics except for the calibration error."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryAUROC,
    BinaryAveragePrecision,
    BinaryStatScores,
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassF1Score,
    MulticlassStatScores,
    MultilabelAveragePrecision,
    MultilabelExactMatch,
    MultilabelStatScores,
)
from torchmetrics.regression import (
    MeanAbsoluteError,
    MeanSquaredError,
    PearsonCorrCoef,
    R2Score,
    SpearmanCorrCoef,
)
from torchmetrics.utilities import dim_zero_cat

from lightning_peft.errors import DataError
from lightning_peft.evaluation.calibration import (
    MOST_LABELS,
    calibration_error,
    confidences,
    label_errors,
)
from lightning_peft.evaluation.metric_names import TASKS, Task
from lightning_peft.evaluation.outputs import check_task

__all__ = ["Gathered", "metric_set", "values_of"]

Parts = dict[str, Metric | MetricCollection]

MOST_RANKED = 100
"""AUROC of more classes than this is left out: it sorts all images once for each."""


def metric_set(
    task: Task,
    *,
    num_classes: int | None = None,
    num_labels: int | None = None,
    num_outputs: int | None = None,
    ranking: bool = True,
) -> MetricCollection:
    """Choose the metrics of a task.

    | task | metrics | updated with |
    | --- | --- | --- |
    | `multiclass` | `accuracy` (of images), `balanced_accuracy` (mean recall of the classes), `f1` (macro), `ece`, `auroc` (one against the rest, mean of the classes) | probabilities `(B, C)`, classes `(B,)` |
    | `binary` | `accuracy`, `balanced_accuracy`, `f1` (of class 1), `auroc`, `ap`, `ece` | probability of class 1 `(B,)`, 0 or 1 `(B,)` |
    | `multilabel` | `accuracy` (images whose labels are all correct), `map` (macro), `f1` (macro), `f1_micro`, `ece` (the mean of the labels) | probabilities `(B, L)`, 0 or 1 `(B, L)` |
    | `regression` | `mae`, `rmse`, `r2`, `pearson`, `spearman`; of several outputs the mean | numbers `(B,)` or `(B, K)`, twice |

    Args:
        task: The task.
        num_classes: For ``"multiclass"``.
        num_labels: For ``"multilabel"``.
        num_outputs: For ``"regression"``.
        ranking: Whether to include the multiclass AUROC, which keeps the probabilities of all images; above 100
            classes it is left out in any case, and above 100 labels their `ece`.

    Returns:
        A collection without a prefix; take its values with :func:`values_of`.

    Raises:
        DataError: If there is no such task, or its size is missing.
    """  # noqa: E501
    check_task(task, TASKS)
    size = {"multiclass": num_classes, "multilabel": num_labels, "regression": num_outputs}
    names = {"multiclass": "num_classes", "multilabel": "num_labels", "regression": "num_outputs"}
    if task == "binary":
        return MetricCollection(_binary())
    count = size[task]
    least = 1 if task == "regression" else 2  # one label is `binary`
    if count is None or count < least:
        raise DataError(f"Expected {names[task]} of {least} or more for {task}, got {count}.")
    if task == "multiclass":
        return MetricCollection(_multiclass(count, ranking and count <= MOST_RANKED))
    return MetricCollection(_multilabel(count) if task == "multilabel" else _regression(count))


def values_of(metrics: MetricCollection) -> dict[str, Tensor]:
    """Compute a collection, as scalars; a metric that is undefined on these images is NaN.

    Args:
        metrics: As from :func:`metric_set`, updated with at least one batch.
    """
    with warnings.catch_warnings():
        # a class without images, or numbers that do not vary: the NaN shows it
        warnings.filterwarnings("ignore", category=UserWarning, module="torchmetrics")
        warnings.filterwarnings("ignore", message=r".*(No (positive|negative) samples|nan|close)")
        found = metrics.compute()
    return {name: value.float().mean() for name, value in found.items()}


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


class SafeR2(R2Score):
    """R2, which is NaN instead of an error for a single image."""

    def compute(self) -> Tensor:
        """Return the mean over the outputs."""
        return super().compute() if self.total > 1 else _nan(self.total)


def _nan(like: Tensor) -> Tensor:
    return torch.full((), float("nan"), device=like.device)


def _multiclass(classes: int, ranking: bool) -> Parts:
    found: Parts = {
        "accuracy": MulticlassAccuracy(classes, average="micro"),
        "balanced_accuracy": BalancedAccuracy(classes, average="macro"),
        "f1": MulticlassF1Score(classes, average="macro"),
        "ece": CalibrationError("multiclass"),
    }
    return found | ({"auroc": SeenAUROC(classes)} if ranking else {})


def _binary() -> Parts:
    return {
        "accuracy": BinaryAccuracy(),
        "balanced_accuracy": BinaryBalancedAccuracy(),
        "f1": SeenBinaryF1(),
        "auroc": SeenBinaryAUROC(),
        "ap": SeenBinaryAP(),
        "ece": CalibrationError("binary"),
    }


def _multilabel(labels: int) -> Parts:
    found: Parts = {
        "accuracy": MultilabelExactMatch(labels),
        "map": SeenMAP(labels),
        "f1": SeenMultilabelF1(labels, average="macro"),
        "f1_micro": SeenMultilabelF1(labels, average="micro"),
    }
    return found | ({"ece": CalibrationError("multilabel")} if labels <= MOST_LABELS else {})


def _regression(outputs: int) -> Parts:
    with warnings.catch_warnings():  # the warning that it keeps all numbers, which are few bytes
        warnings.filterwarnings("ignore", message="Metric `Spearman")
        spearman = SpearmanCorrCoef(num_outputs=outputs)
    return {
        "mae": MeanAbsoluteError(num_outputs=outputs),
        "rmse": MeanSquaredError(squared=False, num_outputs=outputs),
        "r2": SafeR2(),
        "pearson": PearsonCorrCoef(num_outputs=outputs),
        "spearman": spearman,
    }
