"""A linear probe in closed form: ridge regression on the classes, cross-validated."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from lightning_peft.errors import DataError, require
from lightning_peft.ranking.arrays import checked, one_hot
from lightning_peft.system.randomness import generator

__all__ = ["Probe", "linear_probe", "stratified_folds"]

STRENGTHS = torch.logspace(-6, 1, 22, dtype=torch.float64)
"""The penalties to try, in units of the largest squared singular value of the features."""


@dataclasses.dataclass(frozen=True)
class Probe:
    """The accuracy of a linear model of the features on images that it was not fitted to.

    Attributes:
        correct: Whether each image was classified correctly when its fold was left out, ``(N,)``.
        folds: Accuracy on each fold, in [0, 1].
    """

    correct: Tensor
    folds: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        """The fraction of all images that was classified correctly."""
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
    the fitted images, which has a closed form as well (scikit-learn's ``RidgeCV``), so it does
    not depend on the images that are left out.

    Args:
        features: Shape ``(N, D)``.
        labels: Shape ``(N,)``.
        folds: Parts that are left out in turn; each holds the same share of every class.
        seed: Seed of the folds.

    Returns:
        Which images were classified correctly, and the accuracy on each fold.

    Raises:
        DataError: If features and labels do not fit together, or a class has too few images.
        MissingExtraError: If scikit-learn is not installed.
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
    """Distribute the images of each class over the folds, in random order.

    Args:
        labels: Shape ``(N,)``.
        folds: Number of folds, 2 or more.
        seed: Seed of the order.

    Returns:
        The fold of each image, ``(N,)``. The sizes of two folds differ by at most one image, in
        any class and in total.

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


def _fit_and_predict(train: Tensor, targets: Tensor, test: Tensor) -> Tensor:
    """Fit with the penalty of the smallest leave-one-out error; return outputs ``(M, C)``."""
    scaler = require("sklearn.preprocessing", "data").StandardScaler().fit(train.numpy())
    inputs = scaler.transform(train.numpy())
    largest = torch.linalg.matrix_norm(torch.from_numpy(inputs), 2).square().clamp(min=1e-300)
    model = require("sklearn.linear_model", "data").RidgeCV(
        (STRENGTHS * largest).numpy(),
        # what "auto" chooses for many images takes three times as long
        gcv_mode="svd" if len(train) > train.shape[1] else "eigen",
    )
    model.fit(inputs, targets.numpy())
    return torch.from_numpy(model.predict(scaler.transform(test.numpy())))
