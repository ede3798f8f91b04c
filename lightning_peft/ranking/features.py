"""The frozen features of a data set, computed once."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_peft.errors import DataError

__all__ = ["Features", "Inputs", "extract", "milliseconds_each"]

Inputs = Tensor | Mapping[str, Tensor]
"""Images ``(B, C, H, W)``, or a tokeniser's output for texts: tensors ``(B, T)`` by name."""

TIMED = 32
LEAST_RUNS = 3
MOST_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Features:
    """The features of images or texts from a frozen backbone.

    Attributes:
        values: Shape ``(N, D)``, float32, on the CPU.
        labels: Shape ``(N,)``.
    """

    values: Tensor
    labels: Tensor


@torch.no_grad()
def extract(model: nn.Module, batches: Iterable[Any], device: torch.device | str) -> Features:
    """Compute the features of all images or texts.

    Args:
        model: Maps a batch to features ``(B, D)``; it is put into evaluation mode.
        batches: Pairs of images or texts and labels.
        device: The device to compute on.

    Returns:
        The features, in the order of the batches.

    Raises:
        DataError: If the model does not return features of shape ``(B, D)``.
    """
    model.eval().to(device)
    values, labels = [], []
    for inputs, classes in batches:
        found = model(_on(inputs, device))
        if not isinstance(found, Tensor) or found.dim() != 2:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise DataError(f"Expected features of shape (B, D) from the backbone, got {got}.")
        values.append(found.float().cpu())
        labels.append(torch.as_tensor(classes))
    return Features(torch.cat(values), torch.cat(labels))


@torch.no_grad()
def milliseconds_each(model: nn.Module, inputs: Inputs, device: torch.device | str) -> float:
    """Time the forward pass on this machine.

    Args:
        model: Maps a batch to features.
        inputs: A batch; at most 32 of its images or texts are used.
        device: The device to compute on.

    Returns:
        The median over a few passes, after an untimed one, in milliseconds for one image or text.
    """
    model.eval().to(device)
    inputs = _on(inputs, device, TIMED)
    one = inputs if isinstance(inputs, Tensor) else next(iter(inputs.values()))
    times: list[float] = []
    model(inputs)
    while len(times) < LEAST_RUNS or (len(times) < 20 and sum(times) < MOST_SECONDS):
        _wait(one)
        start = time.perf_counter()
        model(inputs)
        _wait(one)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times) / len(one)


def _on(inputs: Inputs, device: torch.device | str, most: int | None = None) -> Inputs:
    """Copy a batch, or its first items, to a device."""
    if isinstance(inputs, Tensor):
        return inputs[:most].to(device)
    return {name: tensor[:most].to(device) for name, tensor in inputs.items()}


def _wait(one: Tensor) -> None:
    if one.is_cuda:
        torch.cuda.synchronize(one.device)
