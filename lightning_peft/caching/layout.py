"""Restoring the memory layout in which features were computed: kernels differ by layout."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_peft.caching.splice import Blank

__all__ = ["laid_out"]


def laid_out(tensor: Tensor, blank: Blank) -> Tensor:
    """Copy a tensor to the device of another, with its dimensions in the same order in memory.

    Args:
        tensor: The values.
        blank: The layout in which they were computed.
    """
    strides = _strides(tensor, blank)
    out = torch.empty_strided(tuple(tensor.shape), strides, dtype=blank.dtype, device=blank.device)
    return out.copy_(tensor)


def _strides(tensor: Tensor, blank: Blank) -> tuple[int, ...]:
    """Return strides with the same order of dimensions, without the gaps of a view."""
    order = sorted(range(tensor.ndim), key=lambda d: (blank.stride[d], -d))
    strides, step = [0] * tensor.ndim, 1
    for dimension in order:
        strides[dimension] = step
        step *= max(tensor.shape[dimension], 1)
    return tuple(strides)
