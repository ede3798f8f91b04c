"""``x W^T + b + s x A^T B^T`` as one autograd function, with the cheaper order of its products.

The plain forward makes two more tensors of the output's size (the update, and the sum), and its
backward as many of the input's. Here the update is added into the product that is there already
(``addmm``), or, where there are many rows, folded into the weight first: then forward and the
gradient of the input are one product each. Only what the backward pass needs is kept: ``x`` if
``A`` is trained, ``x A^T`` of ``rank`` features otherwise, never the update.

The orders are F1, F2, B1 and B5 of Cherniuk et al., "Run LoRA Run: Faster and Lighter LoRA
Implementations", 2023 (https://arxiv.org/abs/2312.03415).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["low_rank_linear", "merges_backward", "merges_forward"]

_EXACT = (torch.float32, torch.float64)
"""Dtypes in which the sum ``W + s B A`` may be rounded: not half precision."""


def low_rank_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
) -> Tensor:
    """Compute ``x W^T + bias + scale (x A^T) B^T`` for a frozen ``W``.

    Autocast is honoured: under it the products are in its dtype. Low-precision weights with
    float32 ``A`` and ``B`` are multiplied in the weights' dtype; no float32 copy of ``x`` is made.

    Args:
        x: Input ``(..., n)``.
        weight: Frozen weight ``(m, n)``; it gets no gradient.
        bias: Frozen bias ``(m,)``, or ``None``.
        a: ``A``, ``(r, n)``.
        b: ``B``, ``(m, r)``.
        scale: The factor s.

    Returns:
        ``(..., m)``.

    >>> x, w = torch.ones(2, 3), torch.zeros(4, 3)
    >>> low_rank_linear(x, w, None, torch.ones(1, 3), torch.ones(4, 1), 0.5)[0]
    tensor([1.5000, 1.5000, 1.5000, 1.5000])
    """
    dtype = weight.dtype
    if _autocasts(x.device.type) and dtype in (torch.float32, torch.bfloat16):
        dtype = torch.get_autocast_dtype(x.device.type)
    flat = x.reshape(-1, x.shape[-1]).to(dtype)
    out = _LowRank.apply(
        flat, weight.to(dtype), None if bias is None else bias.to(dtype), a, b, scale
    )
    assert isinstance(out, Tensor)
    return out.view(*x.shape[:-1], weight.shape[0])


def _autocasts(device: str) -> bool:
    return device != "meta" and torch.is_autocast_enabled(device)


def _exactly(device: str) -> AbstractContextManager[Any]:
    """Switch autocast off: the dtypes are chosen already, and the backward has to use the same."""
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


def merges_forward(rows: int, inputs: int, outputs: int) -> bool:
    """Whether folding the update into the weight is the cheaper forward (F2 before F1)."""
    return rows * (inputs + outputs) > 2 * inputs * outputs


def merges_backward(rows: int, outputs: int) -> bool:
    """Whether it is the cheaper gradient of the input (B5 before B1)."""
    return rows > 2 * outputs


class _LowRank(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scale: float,
    ) -> Tensor:
        down, up = a.to(x.dtype), b.to(x.dtype)
        with _exactly(x.device.type):
            ctx.scale = scale
            trains_a = ctx.needs_input_grad[3]
            if x.dtype in _EXACT and merges_forward(len(x), *reversed(weight.shape)):
                out = F.linear(x, torch.addmm(weight, up, down, alpha=scale), bias)
                hidden = None if trains_a else x @ down.T
            else:
                hidden = x @ down.T
                out = F.linear(x, weight, bias).addmm_(hidden, up.T, alpha=scale)
        # with x kept for A, x A^T is cheaper to compute again than to keep
        kept = (x, None) if trains_a else (None, hidden)
        ctx.save_for_backward(*kept, weight, a, b)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, weight, a, b = ctx.saved_tensors
        needs_x, _, _, needs_a, needs_b, _ = ctx.needs_input_grad
        down, up = a.to(grad.dtype), b.to(grad.dtype)
        grad_x = grad_a = grad_b = None
        with _exactly(grad.device.type):
            merged = (
                needs_x and grad.dtype in _EXACT and merges_backward(len(grad), weight.shape[0])
            )
            grad_hidden = grad[:, :0]
            if needs_a or (needs_x and not merged):
                grad_hidden = (grad @ up).mul_(ctx.scale)
            if needs_b:
                given = x @ down.T if hidden is None else hidden
                grad_b = (grad.T @ given).mul_(ctx.scale).to(b.dtype)
            if needs_a:
                grad_a = (grad_hidden.T @ x).to(a.dtype)
            if merged:
                grad_x = grad @ torch.addmm(weight, up, down, alpha=ctx.scale)
            elif needs_x:
                grad_x = (grad @ weight).addmm_(grad_hidden, down)
        return grad_x, None, None, grad_a, grad_b, None
