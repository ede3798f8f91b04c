"""The losses, the label checks and the tables of the tasks with classes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from lightning_peft.errors import DataError
from lightning_peft.evaluation.metric_names import Task

__all__ = ["check_labels", "imbalance", "task_loss"]

UNEVEN = 3.0
"""The ratio of the largest class to the smallest from which accuracy is misleading."""


def task_loss(task: Task, logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the cross entropy over the classes, or the binary cross entropy of each logit.

    Args:
        task: ``"multiclass"``, ``"binary"`` or ``"multilabel"``.
        logits: ``(B, C)``; for ``"binary"`` ``(B, 1)``.
        labels: Classes ``(B,)`` or, mixed, their shares ``(B, C)`` (for ``"binary"`` ``(B, 2)``);
            for ``"multilabel"`` ``(B, C)`` in [0, 1].
        smoothing: Fraction of the target that is spread over all classes, or over 0 and 1.

    Returns:
        A scalar, the mean.
    """
    if task == "multiclass":
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    if task == "binary" and labels.dim() == 2:
        labels = labels[:, 1]
    truth = labels.to(logits.dtype).reshape(logits.shape)
    return F.binary_cross_entropy_with_logits(logits, truth * (1 - smoothing) + smoothing / 2)


def check_labels(task: Task, labels: Tensor, num_classes: int) -> None:
    """Refuse labels that the head cannot have.

    Args:
        task: A task with classes.
        labels: The labels of a batch.
        num_classes: Number of classes or labels.

    Raises:
        DataError: If the labels do not fit.
    """
    if task == "multilabel":
        _check_multilabel(labels, num_classes)
        return
    if labels.dim() != 1 or labels.is_floating_point():
        raise DataError(
            f"Expected the number of one class for each item, shape (B,), got "
            f"{labels.dtype} of shape {tuple(labels.shape)}. If an item may have several "
            "labels, build the module with task='multilabel'."
        )
    low, high = int(labels.min()), int(labels.max())
    if low >= 0 and high < num_classes:
        return
    more = (
        "A binary head knows 0 and 1: build the module with task='multiclass', or correct the "
        "labels."
        if task == "binary"
        else f"Build the module with num_classes={high + 1}, or correct the labels."
    )
    raise DataError(
        f"Expected labels from 0 to {num_classes - 1}, as the head has {num_classes} classes, got "
        f"labels from {low} to {high}. {more}"
    )


def _check_multilabel(labels: Tensor, count: int) -> None:
    if labels.dim() != 2 or labels.shape[1] != count:
        raise DataError(
            f"Expected 0 or 1 for each of {count} labels, shape (B, {count}), got shape "
            f"{tuple(labels.shape)}. One class for each is task='multiclass'."
        )
    if bool(((labels != 0) & (labels != 1)).any()):
        low, high = float(labels.min()), float(labels.max())
        raise DataError(
            f"Expected labels of 0 and 1, got values from {low:g} to {high:g}. Numbers are for "
            "a regressor."
        )


def imbalance(
    counts: Sequence[int] | Tensor,
    split: str,
    names: Sequence[str] | None = None,
    noun: str = "images",
) -> str | None:
    """Return a warning if the classes are imbalanced.

    Args:
        counts: Images of each class or with each label.
        split: The split, such as ``"train"``.
        names: Name of each class.
        noun: ``"images"`` or ``"texts"``.

    Returns:
        A sentence with the ratio and the rule, or None.
    """
    found = [int(count) for count in counts]
    if not found or not any(found):
        return None
    low, high = min(found), max(found)
    if high < UNEVEN * max(low, 1):
        return None
    shown = [str(k) for k in range(len(found))] if names is None else list(names)
    rare, common = shown[found.index(low)], shown[found.index(high)]
    told = f"'{common}' has {high} and '{rare}' none"
    if low:
        told = f"'{common}' has {high / low:.1f} times the {noun} of '{rare}' ({high} and {low})"
    return (
        f"the classes of the {split} {noun} are uneven: {told}; reported from a ratio of "
        f"{UNEVEN:g} on. Accuracy mostly reflects the frequent ones: see the macro metrics "
        f"({split}/balanced_accuracy, {split}/f1) and the table of classes"
    )
