"""Measuring calibration, and fitting the temperature that improves it: pure functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_peft.errors import DataError
from lightning_peft.evaluation.metric_names import Task

__all__ = [
    "BINS",
    "MOST_LABELS",
    "ReliabilityBin",
    "calibration_error",
    "confidences",
    "expected_error",
    "fit_temperature",
    "label_errors",
    "reliability",
]

BINS = 15
MOST_LABELS = 100
"""The calibration error of more labels is left out, since each needs its own metric."""

LOW, HIGH = 0.02, 50.0
"""Bounds of the temperature: beyond them, scores are uninformative or all correct."""


@dataclasses.dataclass(frozen=True)
class ReliabilityBin:
    """Predictions of about the same confidence.

    Attributes:
        low: Lower end of the bin.
        high: Upper end of it.
        confidence: Mean confidence of the predictions in it.
        accuracy: Fraction of them that is correct.
        count: Number of predictions in it.
    """

    low: float
    high: float
    confidence: float
    accuracy: float
    count: int


def reliability(confidence: Tensor, right: Tensor, bins: int = BINS) -> tuple[ReliabilityBin, ...]:
    """Put predictions into bins of equal width by their confidence.

    Args:
        confidence: In [0, 1], shape ``(N,)``.
        right: 1 where the prediction came true, else 0, shape ``(N,)``.
        bins: Number of bins.

    Returns:
        The bins that hold any prediction, the lowest first. A value on an edge is in the lower
        bin, as in Guo et al. (ICML 2017) and scikit-learn; 0 is in the first, 1 in the last.

    >>> reliability(torch.tensor([0.6, 0.7, 0.9]), torch.tensor([1, 0, 1]), bins=2)[0].count
    3
    """
    place = _bin_of(confidence, bins)
    count = torch.bincount(place, minlength=bins)
    sums = [
        torch.bincount(place, weights=values.double().cpu(), minlength=bins)
        for values in (confidence, right)
    ]
    means = [(total / count.clamp(min=1)).tolist() for total in sums]
    ends = torch.linspace(0, 1, bins + 1, dtype=torch.float64).tolist()
    return tuple(
        ReliabilityBin(ends[i], ends[i + 1], means[0][i], means[1][i], int(count[i]))
        for i in range(bins)
        if count[i]
    )


def calibration_error(confidence: Tensor, right: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the expected calibration error over the bins of :func:`reliability`.

    It is the mean gap between confidence and accuracy, weighted by the bins' counts (Naeini et al.,
    AAAI 2015).

    Args:
        confidence: In [0, 1], shape ``(N,)``.
        right: 1 where the prediction came true, else 0, shape ``(N,)``.
        weights: How often each of R resamples holds each prediction, ``(R, N)``.

    Returns:
        A scalar, or ``(R,)`` with weights; float64, on the CPU.
    """
    gap = confidence.double().cpu() - right.double().cpu()
    each = gap if weights is None else weights * gap
    sums = gap.new_zeros(*each.shape[:-1], BINS).index_add_(-1, _bin_of(confidence, BINS), each)
    return sums.abs().sum(-1) / (len(gap) if weights is None else weights.sum(-1))


def expected_error(bins: Sequence[ReliabilityBin]) -> float:
    """Return the expected calibration error of bins from :func:`reliability`."""
    total = sum(found.count for found in bins)
    return sum(abs(b.confidence - b.accuracy) * b.count for b in bins) / max(total, 1)


def _bin_of(confidence: Tensor, bins: int) -> Tensor:
    """Return the index of each bin of equal width; bins are closed at their upper end."""
    inner = torch.linspace(0, 1, bins + 1, dtype=torch.float32)[1:-1]
    return torch.bucketize(confidence.float().cpu().contiguous(), inner)


def label_errors(probabilities: Tensor, labels: Tensor) -> tuple[float, ...]:
    """Return the expected calibration error of each label separately.

    Pooled over labels, an overconfident one and an underconfident one would cancel out.

    Args:
        probabilities: Shape ``(N, L)``.
        labels: 0 and 1, shape ``(N, L)``.

    Returns:
        One error for each label.

    >>> label_errors(torch.tensor([[0.75, 0.5], [0.75, 0.5]]), torch.tensor([[1, 1], [1, 0]]))
    (0.25, 0.0)
    """
    columns = zip(probabilities.unbind(1), labels.unbind(1), strict=True)
    return tuple(float(calibration_error(p, y)) for p, y in columns)


def confidences(task: Task, probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the confidences of predictions, and whether these are correct.

    Args:
        task: A task with classes.
        probabilities: Shape ``(N, C)``, as from
            :class:`~lightning_peft.evaluation.outputs.Outputs`.
        labels: ``(N,)``, or ``(N, C)`` of 0 and 1 for ``"multilabel"``.

    Returns:
        For ``"multiclass"`` the highest probability and whether that class is correct, ``(N,)``
        each; for ``"binary"`` the probability of class 1 and whether it is the true class; for
        ``"multilabel"`` the same for every label of every image, ``(N * C,)``.
    """
    if task == "multiclass":
        confidence, called = probabilities.max(-1)
        return confidence, (called == labels).float()
    if task == "binary":
        return probabilities[:, 1], labels.float()
    return probabilities.flatten(), labels.float().flatten()


def fit_temperature(logits: Tensor, labels: Tensor, task: Task = "multiclass") -> float:
    """Find the temperature at which logits have the least cross entropy.

    The cross entropy is convex in 1 / T; it is minimised over log T in [0.02, 50] by bisection on
    its derivative, so that the result depends on no starting point and no step.

    Args:
        logits: Logits of the validation images, never of the test set: ``(N, C)``, or ``(N, 1)``
            for ``"binary"``.
        labels: ``(N,)``, or ``(N, C)`` of 0 and 1 for ``"multilabel"``.
        task: A task with classes.

    Returns:
        The divisor of logits.

    Raises:
        DataError: If there is no image, a logit is not finite, or the task has no classes.
    """
    if task == "regression":
        raise DataError("Expected a task with classes to calibrate, got regression.")
    if len(logits) == 0:
        raise DataError("Expected validation images to fit a temperature on, got none.")
    scores = logits.detach().double().cpu()
    if broken := int((~scores.isfinite()).flatten(1).any(1).sum()):
        raise DataError(
            f"Expected finite logits to fit a temperature on, got NaN or infinity for {broken} of "
            f"{len(scores)} validation images: the training diverged, or these images overflow. "
            "Calibrate weights from before that, or leave calibration out."
        )
    truth = labels.detach().cpu()
    low, high = (torch.tensor(end, dtype=torch.float64).log() for end in (1 / HIGH, 1 / LOW))
    if _slope(scores, truth, task, low) >= 0:  # sharper is always worse: as flat as allowed
        return HIGH
    if _slope(scores, truth, task, high) <= 0:
        return LOW
    for _ in range(60):
        middle = (low + high) / 2
        if _slope(scores, truth, task, middle) > 0:
            high = middle
        else:
            low = middle
    return float((-(low + high) / 2).exp())


def _slope(logits: Tensor, labels: Tensor, task: Task, log_sharpness: Tensor) -> float:
    """Return the derivative of the cross entropy by the logarithm of 1 / T."""
    place = log_sharpness.clone().requires_grad_()
    with torch.enable_grad():
        scaled = logits * place.exp()
        if task == "multiclass":
            loss = F.cross_entropy(scaled, labels)
        else:
            truth = labels.double().reshape(scaled.shape)
            loss = F.binary_cross_entropy_with_logits(scaled, truth)
        (slope,) = torch.autograd.grad(loss, place)
    return float(slope)
