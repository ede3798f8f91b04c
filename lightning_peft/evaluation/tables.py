"""Scores of each class, of each label and of each number: pure functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_peft.errors import DataError
from lightning_peft.evaluation.calibration import label_errors

__all__ = [
    "ClassScores",
    "LabelScores",
    "NumberScores",
    "per_class_table",
    "per_label_table",
    "per_number_table",
]


@dataclasses.dataclass(frozen=True)
class ClassScores:
    """The scores of one class; every score is in [0, 1].

    Attributes:
        name: Name of the class.
        precision: Fraction of the images predicted as this class that belong to it; 0 if none was.
        recall: Fraction of the images of this class that were predicted as it; 0 if there is none.
        f1: Harmonic mean of both; 0 if both are 0.
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
    """Compute precision, recall and F1 of each class.

    Args:
        confusion: Counts, shape ``(C, C)``: rows are the true, columns the predicted classes.
        class_names: Name of each class; its number by default.

    Returns:
        One entry for each class.

    Raises:
        DataError: If the matrix is not square, or the number of names differs from its rows.

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
class LabelScores(ClassScores):
    """The scores of one label.

    Attributes:
        ece: The expected calibration error of its probability.
    """

    ece: float


def per_label_table(
    probabilities: Tensor, labels: Tensor, names: Sequence[str] | None = None
) -> tuple[LabelScores, ...]:
    """Compute precision, recall, F1 and calibration of labels that do not exclude each other.

    Args:
        probabilities: The probability of each label, predicted if above 0.5; shape ``(N, L)``.
        labels: 1 where the image has the label, else 0; shape ``(N, L)``.
        names: Name of each label; its number by default.

    Returns:
        One entry for each label; ``support`` is the number of images that have it.
    """
    called, labels = (probabilities > 0.5).long(), labels.long()
    errors = label_errors(probabilities, labels)
    shown = [str(k) for k in range(labels.shape[1])] if names is None else names
    rows = []
    for k, name in enumerate(shown):
        counts = torch.bincount(2 * labels[:, k] + called[:, k], minlength=4).view(2, 2)
        found = {**vars(per_class_table(counts)[1]), "name": name}
        rows.append(LabelScores(**found, ece=errors[k]))
    return tuple(rows)


@dataclasses.dataclass(frozen=True)
class NumberScores:
    """The errors of one number, in its own unit.

    Attributes:
        name: Name of the number.
        mae: Mean of the absolute error.
        rmse: Root of the mean squared error.
        r2: Fraction of the variance that is explained; NaN if the number does not vary.
        bias: Mean of prediction minus truth.
        support: Number of images.
    """

    name: str
    mae: float
    rmse: float
    r2: float
    bias: float
    support: int


def explained(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return R2, the fraction of the variance that is explained, in float64.

    Args:
        outputs: Predictions, shape ``(N, K)``.
        targets: Truth, shape ``(N, K)``.

    Returns:
        Shape ``(K,)``; NaN for a number that does not vary.
    """
    truth = targets.double()
    unexplained = (outputs.double() - truth).square().mean(0) / truth.var(0, correction=0)
    return torch.where(_vary(truth), 1 - unexplained, float("nan"))


def correlation(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return Pearson's correlation, in float64.

    Args:
        outputs: Predictions, shape ``(N, K)``.
        targets: Truth, shape ``(N, K)``.

    Returns:
        Shape ``(K,)``; NaN where predictions or truth do not vary.
    """
    x, y = outputs.double(), targets.double()
    across, up = x - x.mean(0), y - y.mean(0)
    across, up = across / across.abs().amax(0), up / up.abs().amax(0)
    found = F.cosine_similarity(across, up, dim=0, eps=0)
    return torch.where(_vary(x) & _vary(y), found, float("nan"))


def _vary(numbers: Tensor) -> Tensor:
    """Whether each column varies: the variance of equal numbers may be rounding instead of 0."""
    return (numbers != numbers[0]).any(0)


def per_number_table(
    outputs: Tensor, targets: Tensor, names: Sequence[str] | None = None
) -> tuple[NumberScores, ...]:
    """Compute the errors of each number.

    Args:
        outputs: Predictions, shape ``(N, K)``.
        targets: Truth, shape ``(N, K)``.
        names: Name of each number; its index by default.

    Returns:
        One entry for each.
    """
    shown = [str(k) for k in range(targets.shape[1])] if names is None else names
    error = outputs.double() - targets.double()
    rmse, r2 = error.square().mean(0).sqrt(), explained(outputs, targets)
    columns = [found.tolist() for found in (error.abs().mean(0), rmse, r2, error.mean(0))]
    return tuple(
        NumberScores(name, mae, rmse, r2, bias, len(targets))
        for name, mae, rmse, r2, bias in zip(shown, *columns, strict=True)
    )
