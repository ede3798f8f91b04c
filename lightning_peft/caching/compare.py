"""Comparing outputs bit for bit, and features up to rounding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

__all__ = ["difference", "unlike"]

_CLOSE = 1e-3  # how far rounding may move a feature when the batch is another


def unlike(left: Tensor, right: Tensor) -> bool:
    """Whether features differ by more than rounding."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return True
    if not left.is_floating_point():
        return not torch.equal(left, right)
    a, b = left.double(), right.double()
    return bool(((a - b).abs().max() > _CLOSE * a.abs().max().clamp_min(1e-30)).item())


def difference(left: Any, right: Any) -> str:
    """Describe how two values differ; empty if their tensors are the same bit for bit."""
    mine, spec = tree_flatten(left)
    theirs, other = tree_flatten(right)
    if spec != other:
        return "another structure"
    for a, b in zip(mine, theirs, strict=True):
        if isinstance(a, Tensor) != isinstance(b, Tensor):
            return "another kind of value"
        if isinstance(a, Tensor):
            if a.shape != b.shape or a.dtype != b.dtype:
                return f"{tuple(a.shape)} {a.dtype}, then {tuple(b.shape)} {b.dtype}"
            if not torch.equal(a, b):
                return f"{int((a != b).sum())} of {a.numel()} values"
        elif type(a) is not type(b) or (isinstance(a, bool | int | float | str) and a != b):
            return f"{a!r}, then {b!r}"
    return ""
