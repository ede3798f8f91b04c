"""The metrics of each task, from torchmetrics where it defines them as they are documented."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    BinaryAccuracy,
    MulticlassAccuracy,
    MulticlassF1Score,
    MultilabelExactMatch,
)
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError

from lightning_peft.errors import DataError
from lightning_peft.evaluation.calibration import MOST_LABELS
from lightning_peft.evaluation.metric_classes import (
    R2,
    BalancedAccuracy,
    BinaryBalancedAccuracy,
    CalibrationError,
    Pearson,
    SeenAUROC,
    SeenBinaryAP,
    SeenBinaryAUROC,
    SeenBinaryF1,
    SeenMAP,
    SeenMultilabelF1,
    VaryingSpearman,
)
from lightning_peft.evaluation.metric_names import TASKS, Task
from lightning_peft.evaluation.outputs import check_task

__all__ = ["begin_anew", "metric_set", "values_of"]

NARROW = (torch.bfloat16, torch.float16)

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
        spearman = VaryingSpearman(num_outputs=outputs)
    return {
        "mae": MeanAbsoluteError(num_outputs=outputs),
        "rmse": MeanSquaredError(squared=False, num_outputs=outputs),
        "r2": R2(),
        "pearson": Pearson(),
        "spearman": spearman,
    }


def begin_anew(metrics: Metric | MetricCollection) -> None:
    """Reset metrics, whose sums are in float32 or finer from here on.

    ``precision="bf16-true"`` casts a module together with its metrics, and a sum in bfloat16 no
    longer grows by one from 256 on.

    Args:
        metrics: A metric, or several.
    """
    metrics.reset()
    for metric in metrics.modules():
        # not its `dtype`, which moving it to a device sets back
        states = metric.metric_state.values() if isinstance(metric, Metric) else ()
        if any(isinstance(s, Tensor) and s.dtype in NARROW for s in states):
            metric.to(torch.float32)
