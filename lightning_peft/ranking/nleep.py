"""NLEEP: LEEP with clusters of the features in place of the source model's classes."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from lightning_peft.errors import DataError, require
from lightning_peft.ranking.arrays import checked, one_hot

__all__ = ["leep", "nleep"]

ENERGY = 0.8
CLUSTERS_PER_CLASS = 5
IMAGES_PER_CLUSTER = 5


def nleep(features: Tensor, labels: Tensor, *, clusters: int | None = None, seed: int = 0) -> float:
    """Return LEEP with soft clusters of the features from a Gaussian mixture.

    The features are reduced to the principal components that hold 80 % of their variance, a mixture
    of Gaussians is fitted, and the probabilities of its components replace those of the source
    classes in :func:`leep`. The Gaussians are axis-parallel in the principal components: full
    covariances need more images than a task with few labels has.

    Li et al., "Ranking Neural Checkpoints", CVPR 2021 (https://arxiv.org/abs/2011.11200).

    Args:
        features: Shape ``(N, D)``.
        labels: Shape ``(N,)``.
        clusters: Components of the mixture; by default 5 per class as in the paper, but at most one
            for 5 images, and at least one per class.
        seed: Seed of the mixture's start.

    Returns:
        The score, at most 0; higher is better.

    Raises:
        DataError: If features and labels do not fit together, or there are more clusters than
            images.
        MissingExtraError: If scikit-learn is not installed.
    """
    mixture = require("sklearn.mixture", "data")
    values, numbers, classes = checked(features, labels)
    n = len(values)
    if clusters is None:
        most = max(classes, n // IMAGES_PER_CLUSTER)
        clusters = min(CLUSTERS_PER_CLASS * classes, most, n)
    if not 1 <= clusters <= n:
        raise DataError(f"Expected from 1 to {n} clusters for {n} images, got {clusters}.")
    centred = values - values.mean(0)
    left, singular, _ = torch.linalg.svd(centred, full_matrices=False)
    energy = singular.square().cumsum(0)
    kept = 1 + int((energy < ENERGY * energy[-1]).sum())
    reduced = left[:, :kept] * singular[:kept]
    # a variance of 1 keeps the mixture's own regularisation small, whatever the features' scale
    reduced = reduced / reduced.std().clamp(min=1e-12)
    model = mixture.GaussianMixture(clusters, covariance_type="diag", random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*(did not converge|distinct clusters)")
        soft = model.fit(reduced.numpy()).predict_proba(reduced.numpy())
    return leep(torch.from_numpy(soft), numbers)


def leep(probabilities: Tensor, labels: Tensor) -> float:
    r"""Return the mean log-likelihood of the labels, predicted from a source model's classes.

    .. math::

        \frac{1}{N} \sum_i \log \sum_z \hat P(y_i \mid z)\, \theta(x_i)_z, \qquad
        \hat P(y \mid z) = \frac{\sum_{i: y_i = y} \theta(x_i)_z}{\sum_i \theta(x_i)_z}

    Nguyen, Hassner, Seeger and Archambeau, "LEEP: A New Measure to Evaluate Transferability of
    Learned Representations", ICML 2020 (https://arxiv.org/abs/2002.12462).

    Args:
        probabilities: Predictions of the source model, shape ``(N, Z)``; rows sum to 1.
        labels: Shape ``(N,)``.

    Returns:
        The score, at most 0; higher is better.

    Raises:
        DataError: If probabilities and labels do not fit together.
    """
    theta, numbers, classes = checked(probabilities, labels)
    joint = one_hot(numbers, classes).T @ theta  # (classes, Z)
    given = joint / joint.sum(0).clamp(min=1e-300)
    predicted = (given[numbers] * theta).sum(1)
    return float(predicted.clamp(min=1e-300).log().mean())
