"""LogME: how probable the labels are under a Bayesian linear model of the features."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_peft.ranking.arrays import checked, one_hot

__all__ = ["logme"]

POINTS = 129
ZOOMS = 4
LEAST_NOISE = 1e-12


def logme(features: Tensor, labels: Tensor) -> float:
    r"""Return the largest log evidence of the labels per image, averaged over the classes.

    For the one-hot column :math:`y` of a class and features :math:`F`, with the prior
    :math:`w \sim N(0, \alpha^{-1} I)` and :math:`y \sim N(F w, \beta^{-1} I)`,

    .. math::

        \mathrm{LogME} = \frac{1}{N} \max_{\alpha, \beta} \log p(y \mid F, \alpha, \beta), \qquad
        y \sim N\big(0,\ \beta^{-1} I + \alpha^{-1} F F^\top\big)

    You, Liu, Wang and Long, "LogME: Practical Assessment of Pre-trained Models for Transfer
    Learning", ICML 2021 (https://arxiv.org/abs/2102.11005).

    The paper finds the maximum by a fixed-point iteration. Here :math:`\beta` is eliminated (given
    the ratio :math:`r = \alpha / \beta` its best value has a closed form) and the maximum over the
    one remaining number is searched for directly: it cannot stop at a lower one.

    Args:
        features: Shape ``(N, D)``.
        labels: Shape ``(N,)``.

    Returns:
        The score; higher is better. It compares features of the same images only. The noise
        :math:`\beta^{-1}` is held at 1e-12 or more: labels that are an exact linear function of
        the features have no largest evidence.

    Raises:
        DataError: If features and labels do not fit together.
    """
    values, numbers, classes = checked(features, labels)
    left, singular, _ = torch.linalg.svd(values, full_matrices=False)
    kept = singular > singular[0] * 1e-12 * max(values.shape)
    targets = one_hot(numbers, classes)
    along = (left[:, kept].T @ targets).square()  # of y, in the directions of the features
    outside = (targets.square().sum(0) - along.sum(0)).clamp(min=0)
    strengths = singular[kept].square()
    total = sum(
        _largest_evidence(strengths, along[:, k], outside[k], len(values)) for k in range(classes)
    )
    return total / classes / len(values)


def _largest_evidence(strengths: Tensor, along: Tensor, outside: Tensor, n: int) -> float:
    """Maximise over the log of alpha / beta: a grid, and finer ones around its best point."""
    if not len(strengths):  # features of zeros
        strengths, along = torch.ones(1, dtype=along.dtype), torch.zeros(1, dtype=along.dtype)
    low = math.log(float(strengths.min())) - 14
    high = math.log(float(strengths.max())) + 14
    best = -math.inf
    for _ in range(ZOOMS):
        grid = torch.linspace(low, high, POINTS, dtype=strengths.dtype)
        gain = strengths / grid.exp().unsqueeze(1)  # (points, directions)
        noise = ((along / (1 + gain)).sum(1) + outside) / n
        evidence = -n / 2 * ((2 * math.pi * noise.clamp(min=LEAST_NOISE)).log() + 1)
        evidence = evidence - gain.log1p().sum(1) / 2
        place = int(evidence.argmax())
        best = max(best, float(evidence[place]))
        low, high = float(grid[max(place - 1, 0)]), float(grid[min(place + 1, POINTS - 1)])
    return best
