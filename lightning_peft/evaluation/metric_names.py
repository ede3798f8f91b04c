"""Facts that follow from the name of a metric: whether lower is better, and its format.

This module does not import torch: tables of runs only need the names.
"""

from __future__ import annotations

from typing import Literal, get_args

__all__ = ["KNOWN", "MAIN", "TASKS", "Task", "is_share", "is_test", "lower_is_better", "written"]

Task = Literal["multiclass", "binary", "multilabel", "regression"]

TASKS: tuple[Task, ...] = get_args(Task)

MAIN: dict[str, str] = {
    "multiclass": "accuracy",
    "binary": "accuracy",
    "multilabel": "accuracy",
    "regression": "rmse",
    "language": "perplexity",
    "preference": "accuracy",
    "token_classification": "f1",
    "seq2seq": "rougeL",
}
"""The metric that selects the checkpoint of a task, without its stage."""

KNOWN = (
    *("accuracy", "ap", "auroc", "balanced_accuracy", "ece", "f1", "f1_micro", "loss", "mae"),
    *("map", "margin", "pearson", "perplexity", "precision", "r2", "recall", "rmse"),
    *("rouge1", "rouge2", "rougeL", "spearman"),
)
"""The metrics of the ready modules on the validation set, for any task."""

LOWER = ("loss", "rmse", "mse", "mae", "ece", "error", "ece_uncalibrated", "perplexity")
SHARES = (
    *("accuracy", "balanced_accuracy", "f1", "f1_micro"),
    *("precision", "recall", "auroc", "ap", "map"),
    *("rouge1", "rouge2", "rougel"),  # as `_bare` writes them
)


def lower_is_better(metric: str) -> bool:
    """Whether lower is better for a metric, such as ``"val/loss"`` and ``"test/rmse"``."""
    return _bare(metric) in LOWER


def is_share(metric: str) -> bool:
    """Whether a metric is a fraction that is shown as a percentage, such as ``"test/f1"``."""
    return _bare(metric) in SHARES


def is_test(metric: str) -> bool:
    """Whether a metric is measured on the test set, and must not be used to choose anything."""
    return metric.partition("/")[0].strip().lower() == "test"


def written(metric: str, value: float) -> str:
    """Format a value, as a percentage if it is a fraction.

    >>> written("test/accuracy", 0.934), written("test/rmse", 0.934)
    ('93.4 %', '0.9340')
    """
    if is_share(metric):
        return f"{100 * value:.1f} %"
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.6g}"


def _bare(metric: str) -> str:
    return metric.rpartition("/")[2].strip().lower()
