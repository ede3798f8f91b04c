"""Checks and conversions of features and labels that all scores share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_peft.errors import DataError

__all__ = ["checked", "one_hot"]


def checked(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, int]:
    """Check features and labels.

    Args:
        features: Shape ``(N, D)``.
        labels: Whole numbers, shape ``(N,)``; they need not be contiguous.

    Returns:
        The features in float64, the labels as numbers from 0 without gaps, and the number of
        classes.

    Raises:
        DataError: If the shapes do not fit, a feature is not finite, or there are fewer than two
            classes.
    """
    if features.dim() != 2 or labels.shape != features.shape[:1]:
        raise DataError(
            "Expected features of shape (N, D) and labels of shape (N,), got "
            f"{tuple(features.shape)} and {tuple(labels.shape)}."
        )
    if labels.is_floating_point() or labels.is_complex():
        raise DataError(f"Expected whole numbers as labels, got {labels.dtype}.")
    values = features.detach().double().cpu()
    broken = int((~values.isfinite()).any(1).sum())
    if broken:
        raise DataError(
            f"Expected finite features, got NaN or infinity for {broken} of {len(values)} images: "
            "the backbone overflows on them, or its weights are damaged."
        )
    present, numbers = labels.cpu().unique(return_inverse=True)
    if len(present) < 2:
        raise DataError(f"Expected two or more classes among the labels, got {len(present)}.")
    return values, numbers, len(present)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Convert labels ``(N,)`` to targets ``(N, classes)`` of 0 and 1, in float64."""
    targets: Tensor = F.one_hot(labels, classes).to(torch.float64)
    return targets
