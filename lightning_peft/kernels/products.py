"""The products of a low-rank layer, without autograd, in the cheaper order and the right dtype.

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
"""Dtypes that are exact enough for the sum ``W + s B A``: not half precision."""


def autocast_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """Return the dtype to multiply in: autocast's if it is on, otherwise the weight's."""
    device = x.device.type
    castable = weight.dtype in (torch.float32, torch.bfloat16)
    if device != "meta" and castable and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype


def exactly(device: str) -> AbstractContextManager[Any]:
    """Switch autocast off: the dtypes are already chosen, and the backward must use the same."""
    if device == "meta" or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def merges_forward(rows: int, inputs: int, outputs: int) -> bool:
    """Whether folding the update into the weight is the cheaper forward (F2 before F1)."""
    return rows * (inputs + outputs) > 2 * inputs * outputs


def merges_backward(rows: int, outputs: int) -> bool:
    """Whether the same gives the cheaper gradient of the input (B5 before B1)."""
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
        given: The input of ``A``, if it is not ``x`` itself.

    Returns:
        ``(rows, m)``, and ``given A^T`` of ``(rows, r)`` if it was computed.
    """
    if given is None and x.dtype in EXACT and merges_forward(len(x), *reversed(weight.shape)):
        return F.linear(x, torch.addmm(weight, up, down, alpha=scale), bias), None
    hidden = F.linear(x if given is None else given, down)
    return F.linear(x, weight, bias).addmm_(hidden, up.T, alpha=scale), hidden


def dropped(x: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Return ``x`` with dropout by a given mask: masked entries zero, the others scaled."""
    if mask is None:
        return x
    return x * mask * (1 / (1 - dropout) if dropout < 1 else 0.0)


def refuse_second(not_kept: bool) -> None:
    """Refuse a second derivative (``create_graph=True``) that would miss a part of the graph.

    Args:
        not_kept: Whether the layer's input is not kept, but recomputed or not used.

    Raises:
        RuntimeError: If the running backward pass is to be differentiated itself.
    """
    if not_kept and torch.is_grad_enabled():
        raise RuntimeError(
            "A second derivative through a fast LoRA layer: expected the layer's input to be kept, "
            "but it is recomputed in the backward pass, or A is frozen. Choose memory='high', and "
            "train A as well as B."
        )
