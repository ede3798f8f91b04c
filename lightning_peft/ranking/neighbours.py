"""Nearest neighbours: whether images of a class are close to each other, without training."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_peft.errors import DataError
from lightning_peft.ranking.arrays import checked

__all__ = ["nearest_neighbours"]

CHUNK = 1024


def nearest_neighbours(features: Tensor, labels: Tensor, k: int = 5) -> float:
    """Classify each image by the k others with the most similar directions of their features.

    Leave-one-out: no image votes for itself. The neighbours have one vote each, as in Wu et al.,
    2018 (https://arxiv.org/abs/1805.01978) without its weights; among classes with equal votes
    the one with the larger summed cosine similarity wins.

    Args:
        features: Shape ``(N, D)``.
        labels: Shape ``(N,)``.
        k: Number of neighbours; all other images if there are fewer.

    Returns:
        The accuracy, in [0, 1].

    Raises:
        DataError: If features and labels do not fit together, or ``k`` is below 1.
    """
    if k < 1:
        raise DataError(f"Expected k of 1 or more neighbours, got {k}.")
    values, numbers, classes = checked(features, labels)
    directions = F.normalize(values, dim=1)
    k = min(k, len(values) - 1)
    right = 0
    for start in range(0, len(values), CHUNK):  # N x N similarities may not fit into memory
        rows = torch.arange(start, min(start + CHUNK, len(values)))
        similarity = directions[rows] @ directions.T
        similarity[torch.arange(len(rows)), rows] = -torch.inf
        closeness, nearest = similarity.topk(k, dim=1)
        # the cosines, from -1 to 1, add up to less than half a vote: they only break ties
        votes = torch.zeros(len(rows), classes, dtype=values.dtype)
        votes.scatter_add_(1, numbers[nearest], 1 + closeness / (4 * k))
        right += int((votes.argmax(1) == numbers[rows]).sum())
    return right / len(values)
