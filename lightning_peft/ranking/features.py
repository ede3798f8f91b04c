"""The frozen features of a data set, computed once."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_peft.errors import DataError

__all__ = ["Features", "extract", "milliseconds_per_image"]

TIMED_IMAGES = 32
LEAST_RUNS = 3
MOST_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Features:
    """What a frozen backbone makes of images.

    Attributes:
        values: Shape ``(N, D)``, float32, on the CPU.
        labels: Shape ``(N,)``.
    """

    values: Tensor
    labels: Tensor


@torch.no_grad()
def extract(model: nn.Module, batches: Iterable[Any], device: torch.device | str) -> Features:
    """Compute the features of all images.

    Args:
        model: Maps images ``(B, C, H, W)`` to features ``(B, D)``; it is put into evaluation mode.
        batches: Pairs of images and labels.
        device: Where to compute.

    Returns:
        The features, in the order of the batches.

    Raises:
        DataError: If the model gives no features of shape ``(B, D)``.
    """
    model.eval().to(device)
    values, labels = [], []
    for images, classes in batches:
        found = model(images.to(device))
        if not isinstance(found, Tensor) or found.dim() != 2:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise DataError(f"Expected features of shape (B, D) from the backbone, got {got}.")
        values.append(found.float().cpu())
        labels.append(torch.as_tensor(classes))
    return Features(torch.cat(values), torch.cat(labels))


@torch.no_grad()
def milliseconds_per_image(model: nn.Module, images: Tensor, device: torch.device | str) -> float:
    """Time the forward pass on this machine.

    Args:
        model: Maps images to features.
        images: Shape ``(B, C, H, W)``; at most 32 of them are used, as one batch.
        device: Where to compute.

    Returns:
        The median over a few passes, after one that is not counted, in milliseconds an image.
    """
    model.eval().to(device)
    images = images[:TIMED_IMAGES].to(device)
    times: list[float] = []
    model(images)
    while len(times) < LEAST_RUNS or (len(times) < 20 and sum(times) < MOST_SECONDS):
        _wait(images)
        start = time.perf_counter()
        model(images)
        _wait(images)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times) / len(images)


def _wait(images: Tensor) -> None:
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
