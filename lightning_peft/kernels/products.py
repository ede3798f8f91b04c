"""The products of a low-rank layer, without autograd: which order is cheaper, in which dtype.

The orders are F1, F2, B1 and B5 of Cherniuk et al., "Run LoRA Run: Faster and Lighter LoRA
Implementations", 2023 (https://arxiv.org/abs/2312.03415).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "EXACT",
    "autocast_dtype",
    "dropped",
    "exactly",
    "merges_backward",
    "merges_forward",
    "refuse_second",
    "updated",
]

EXACT = (torch.float32, torch.float64)
"""Dtypes in which the sum ``W + s B A`` may be rounded: not half precision."""


def autocast_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype to multiply in: that of autocast, where it is on, or the weight's."""
    device = x.device.type
    castable = weight.dtype in (torch.float32, torch.bfloat16)
    if device != "meta" and castable and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype


def exactly(device: str) -> AbstractContextManager[Any]:
    """Switch autocast off: the dtypes are chosen already, and the backward has to use the same."""
    if device == "meta" or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def merges_forward(rows: int, inputs: int, outputs: int) -> bool:
    """Whether folding the update into the weight is the cheaper forward (F2 before F1)."""
    return rows * (inputs + outputs) > 2 * inputs * outputs


def merges_backward(rows: int, outputs: int) -> bool:
    """Whether it is the cheaper gradient of the input (B5 before B1)."""
    return rows > 2 * outputs


def updated(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor,
    up: Tensor,
    scale: float,
    given: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Compute ``x W^T + bias + scale (given A^T) B^T``.

    Args:
        x: ``(rows, n)``.
        weight: ``(m, n)``.
        bias: ``(m,)``, or ``None``.
        down: ``A``, ``(r, n)``.
        up: ``B``, ``(m, r)``.
        scale: The factor s.
        given: What A is given, if that is not ``x`` itself.

    Returns:
        ``(rows, m)``, and ``given A^T`` of ``(rows, r)`` where it was computed on the way.
    """
    if given is None and x.dtype in EXACT and merges_forward(len(x), *reversed(weight.shape)):
        return F.linear(x, torch.addmm(weight, up, down, alpha=scale), bias), None
    hidden = F.linear(x if given is None else given, down)
    return F.linear(x, weight, bias).addmm_(hidden, up.T, alpha=scale), hidden


def dropped(x: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Drop what ``mask`` drops, and scale the rest, as dropout does."""
    if mask is None:
        return x
    return x * mask * (1 / (1 - dropout) if dropout < 1 else 0.0)


def refuse_second(not_kept: bool) -> None:
    """Refuse a second derivative (``create_graph=True``) that would miss a part of the graph.

    Args:
        not_kept: Whether the backward pass has not got the layer's input, but makes it again or
            does without.

    Raises:
        RuntimeError: Where the backward pass that is under way is to be differentiated itself.
    """
    if not_kept and torch.is_grad_enabled():
        raise RuntimeError(
            "A second derivative through a fast LoRA layer: expected the layer's input to be kept, "
            "but it is made again in the backward pass, or A is frozen. Choose memory='high', and "
            "train A as well as B."
        )
