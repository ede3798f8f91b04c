"""H-score: the distance between classes, in units of the features' own spread."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_peft.errors import require
from lightning_peft.ranking.arrays import checked, one_hot

__all__ = ["h_score"]


def h_score(features: Tensor, labels: Tensor, *, shrinkage: bool = True) -> float:
    r"""Return the between-class covariance relative to the covariance of all features.

    .. math::

        H = \mathrm{tr}\big(\Sigma_f^{+}\, \Sigma_z\big), \qquad
        H_\alpha = \mathrm{tr}\big(\Sigma_{f, \alpha}^{-1}\, (1 - \alpha)\, \Sigma_z\big), \qquad
        \Sigma_{f, \alpha} = (1 - \alpha)\, \Sigma_f + \alpha\, \frac{\mathrm{tr}\,\Sigma_f}{D} I

    where :math:`\Sigma_f` is the covariance of the features and :math:`\Sigma_z` that of the class
    means, each image having the mean of its class. Without shrinkage and with as many features as
    images, every backbone gets the highest possible score (classes - 1).

    Bao et al., "An Information-Theoretic Approach to Transferability in Task Transfer Learning",
    ICIP 2019 (https://arxiv.org/abs/2212.10082). With shrinkage: Ibrahim, Ponomareva and Mazumder,
    "Newer is not always better: Rethinking transferability metrics, their peculiarities, stability
    and performance", 2021 (https://arxiv.org/abs/2110.06893); :math:`\alpha` is Ledoit and Wolf's
    (scikit-learn's).

    Args:
        features: Shape ``(N, D)``.
        labels: Shape ``(N,)``.
        shrinkage: Shrink the covariance, as is needed for few images and many features.

    Returns:
        The score, in [0, classes - 1]; higher is better.

    Raises:
        DataError: If features and labels do not fit together.
        MissingExtraError: If the covariance is shrunk and scikit-learn is not installed.
    """
    values, numbers, classes = checked(features, labels)
    n, width = values.shape
    centred = values - values.mean(0)
    covariance = centred.T @ centred / n
    members = one_hot(numbers, classes)
    counts = members.sum(0)
    means = members.T @ centred / counts.unsqueeze(1)  # (classes, D)
    weighted = (counts / n).sqrt().unsqueeze(1) * means  # weighted.T @ weighted is Sigma_z
    if not shrinkage:
        inverse = torch.linalg.pinv(covariance, hermitian=True)
        return float((weighted @ inverse * weighted).sum())
    spread = covariance.diagonal().mean()
    if not spread > 0:  # all images have the same features
        return 0.0
    estimators = require("sklearn.covariance", "data")
    alpha = float(estimators.ledoit_wolf_shrinkage(centred.numpy(), assume_centered=True))
    shrunk = (1 - alpha) * covariance + alpha * spread * torch.eye(width, dtype=values.dtype)
    solved = torch.linalg.lstsq(shrunk, weighted.T, driver="gelsd").solution
    return float((1 - alpha) * (weighted.T * solved).sum())
