"""A linear probe in closed form: ridge regression on the classes, cross-validated."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from lightning_peft.errors import DataError
from lightning_peft.randomness import generator
from lightning_peft.ranking.arrays import checked, one_hot

__all__ = ["Probe", "leave_one_out_errors", "linear_probe", "stratified_folds"]

STRENGTHS = torch.logspace(-6, 1, 22, dtype=torch.float64)
"""The penalties that are tried, in units of the largest squared singular value of the features."""


@dataclasses.dataclass(frozen=True)
class Probe:
    """How well a linear model of the features does on images that it was not fitted to.

    Attributes:
        correct: Whether each image was classified rightly when its fold was left out, ``(N,)``.
        folds: Accuracy on each fold, in [0, 1].
    """

    correct: Tensor
    folds: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        """The part of all images that was classified rightly."""
        return float(self.correct.double().mean())

    @property
    def deviation(self) -> float:
        """The standard deviation of the accuracy over the folds."""
        return float(torch.tensor(self.folds, dtype=torch.float64).std())


def linear_probe(features: Tensor, labels: Tensor, *, folds: int = 5, seed: int = 0) -> Probe:
    r"""Fit a linear classifier in closed form, and test it on images left out.

    Features are standardised; the one-hot labels :math:`Y` are regressed on them,

    .. math::

        W = (X^\top X + \lambda I)^{-1} X^\top (Y - \bar Y)

    and the largest output is the class (regularised least-squares classification: Rifkin, Yeo and
    Poggio, 2003). The penalty :math:`\lambda` is the one with the smallest leave-one-out error on
    the fitted images, which has a closed form as well (:func:`leave_one_out_errors`), so the image
    that is left out plays no part in it.

    Args:
        features: Shape ``(N, D)``.
        labels: Shape ``(N,)``.
        folds: Parts that are left out in turn; each holds the same share of every class.
        seed: Seed of the folds.

    Returns:
        Which images were classified rightly, and the accuracy on each fold.

    Raises:
        DataError: If features and labels do not fit together, or a class has too few images.
    """
    values, numbers, classes = checked(features, labels)
    part = stratified_folds(numbers, folds, seed)
    correct = torch.zeros(len(values), dtype=torch.bool)
    found = []
    for fold in range(folds):
        out = part == fold
        scores = _fit_and_predict(values[~out], one_hot(numbers[~out], classes), values[out])
        correct[out] = scores.argmax(1) == numbers[out]
        found.append(float(correct[out].double().mean()))
    return Probe(correct, tuple(found))


def stratified_folds(labels: Tensor, folds: int, seed: int = 0) -> Tensor:
    """Deal the images of each class out to the folds, in random order.

    Args:
        labels: Shape ``(N,)``.
        folds: How many folds, 2 or more.
        seed: Seed of the order.

    Returns:
        The fold of each image, ``(N,)``. No fold has two images more than another one, of any
        class or of all.

    Raises:
        DataError: If there are fewer than two folds, or a class has fewer images than two.
    """
    counts = labels.unique(return_counts=True)[1]
    if folds < 2 or folds > len(labels):
        raise DataError(f"Expected from 2 to {len(labels)} folds, got {folds}.")
    if int(counts.min()) < 2:
        raise DataError(
            "Expected two or more images of each class, so that one can be left out, got one for "
            f"{int((counts < 2).sum())} of {len(counts)} classes: give them more labels."
        )
    random = generator("folds", seed)
    order = torch.cat(
        [
            members[torch.randperm(len(members), generator=random)]
            for members in (torch.nonzero(labels == label).flatten() for label in labels.unique())
        ]
    )
    part = torch.empty(len(labels), dtype=torch.long)
    part[order] = torch.arange(len(labels)) % folds
    return part


def leave_one_out_errors(features: Tensor, targets: Tensor, penalties: Tensor) -> Tensor:
    r"""The mean squared error of ridge regression on each image left out, without refitting.

    With the hat matrix :math:`H` of the fit to all images (the intercept included), the error of
    the fit without image i is :math:`(y_i - \hat y_i) / (1 - H_{ii})` (Allen's PRESS, 1974).

    Args:
        features: Centred, shape ``(N, D)``.
        targets: Shape ``(N, C)``.
        penalties: Shape ``(P,)``.

    Returns:
        The mean over images and targets for each penalty, ``(P,)``.
    """
    left, singular, _ = torch.linalg.svd(features, full_matrices=False)
    centred = targets - targets.mean(0)
    along = left.T @ centred
    errors = []
    for penalty in penalties:
        shrink = singular.square() / (singular.square() + penalty)
        fitted = left @ (shrink.unsqueeze(1) * along)
        leverage = (left.square() * shrink).sum(1) + 1 / len(features)
        left_out = (centred - fitted) / (1 - leverage).clamp(min=1e-12).unsqueeze(1)
        errors.append(left_out.square().mean())
    return torch.stack(errors)


def _fit_and_predict(train: Tensor, targets: Tensor, test: Tensor) -> Tensor:
    """Fit with the penalty whose leave-one-out error is the smallest; outputs ``(M, C)``."""
    mean = train.mean(0)
    spread = (train - mean).square().mean(0).sqrt()
    scale = torch.where(spread > 1e-12 * spread.max().clamp(min=1e-300), spread, torch.inf)
    inputs = (train - mean) / scale
    largest = torch.linalg.matrix_norm(inputs, 2).square().clamp(min=1e-300)
    penalties = STRENGTHS * largest
    penalty = penalties[leave_one_out_errors(inputs, targets, penalties).argmin()]
    average = targets.mean(0)
    # the smaller of both systems: N x N in place of D x D where there are more features
    if len(inputs) < inputs.shape[1]:
        gram = inputs @ inputs.T + penalty * torch.eye(len(inputs), dtype=inputs.dtype)
        weight = inputs.T @ torch.linalg.solve(gram, targets - average)
    else:
        gram = inputs.T @ inputs + penalty * torch.eye(inputs.shape[1], dtype=inputs.dtype)
        weight = torch.linalg.solve(gram, inputs.T @ (targets - average))
    return average + (test - mean) / scale @ weight
