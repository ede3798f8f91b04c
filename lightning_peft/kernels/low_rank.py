"""``x W^T + b + s x A^T B^T`` as one autograd function, with the cheaper order of its products.

The plain forward makes two more tensors of the output's size (the update, and the sum), and its
backward as many of the input's. Here the update is added into the product that is there already
(``addmm``), or, where there are many rows, folded into the weight first: then forward and the
gradient of the input are one product each. Only what the backward pass needs is kept: ``x`` if
``A`` is trained (or what ``x`` was made from, see :mod:`lightning_peft.kernels.rebuild`),
``x A^T`` of ``rank`` features otherwise, never the update.

The orders are F1, F2, B1 and B5 of Cherniuk et al., "Run LoRA Run: Faster and Lighter LoRA
Implementations", 2023 (https://arxiv.org/abs/2312.03415).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_peft.kernels.rebuild import Memory, Recipe, is_looked_at, parted, recipe_of

__all__ = [
    "EXACT",
    "autocast_dtype",
    "exactly",
    "low_rank_linear",
    "merges_backward",
    "merges_forward",
]

EXACT = (torch.float32, torch.float64)
"""Dtypes in which the sum ``W + s B A`` may be rounded: not half precision."""


def low_rank_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scale: float,
    *,
    dropout: float = 0.0,
    memory: Memory = "high",
    training: bool = False,
) -> Tensor:
    """Compute ``x W^T + bias + scale (dropout(x) A^T) B^T`` for a frozen ``W``.

    Autocast is honoured: under it the products are in its dtype. Low-precision weights with
    float32 ``A`` and ``B`` are multiplied in the weights' dtype; no float32 copy of ``x`` is made.

    Args:
        x: Input ``(..., n)``.
        weight: Frozen weight ``(m, n)``; it gets no gradient.
        bias: Frozen bias ``(m,)``, or ``None``.
        a: ``A``, ``(r, n)``.
        b: ``B``, ``(m, r)``.
        scale: The factor s.
        dropout: Probability with which the input of ``A`` is dropped.
        memory: What may be made again in the backward pass instead of being kept.
        training: Then, of an activation function whose result is made again, the backward pass is
            run here too and in place. ``torch.autograd.grad`` does not see that result as a part of
            the graph; tensor hooks and ``retain_grad`` on it are respected.

    Returns:
        ``(..., m)``.

    >>> x, w = torch.ones(2, 3), torch.zeros(4, 3)
    >>> low_rank_linear(x, w, None, torch.ones(1, 3), torch.ones(4, 1), 0.5)[0]
    tensor([1.5000, 1.5000, 1.5000, 1.5000])
    """
    dtype = autocast_dtype(x, weight)
    flat = x.reshape(-1, x.shape[-1]).to(dtype)
    recipe = recipe_of(x, memory) if a.requires_grad else None
    through = recipe is not None and training and recipe.slopes and not is_looked_at(x)
    if recipe is not None and not through:
        recipe = recipe.detached()
    how, made_from = parted(recipe)
    out = _LowRank.apply(
        flat.detach() if through else flat,
        weight.to(dtype),
        None if bias is None else bias.to(dtype),
        a,
        b,
        scale,
        dropout,
        how,
        *made_from,
    )
    assert isinstance(out, Tensor)
    return out.view(*x.shape[:-1], weight.shape[0])


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
        dropout: float,
        recipe: Recipe | None,
        *made_from: Tensor | None,
    ) -> Tensor:
        down, up = a.to(x.dtype), b.to(x.dtype)
        ctx.scale, ctx.dropout, ctx.recipe, ctx.dtype = scale, dropout, recipe, x.dtype
        trains_a = ctx.needs_input_grad[3]
        hidden = mask = None
        with exactly(x.device.type):
            if dropout:
                dropped, mask = torch.native_dropout(x, dropout, True)
            else:
                dropped = x
            ctx.merges = x.dtype in EXACT and not dropout
            if ctx.merges and merges_forward(len(x), *reversed(weight.shape)):
                out = F.linear(x, torch.addmm(weight, up, down, alpha=scale), bias)
                if not trains_a:
                    hidden = F.linear(x, down)
            else:
                hidden = F.linear(dropped, down)
                out = F.linear(x, weight, bias).addmm_(hidden, up.T, alpha=scale)
        # with x there for A, x A^T is cheaper to compute again than to keep
        if trains_a:
            hidden = None
        kept = (None,) if not trains_a or recipe is not None else (x,)
        ctx.save_for_backward(weight, a, b, mask, hidden, *kept, *made_from)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, a, b, mask, hidden, x, *made_from = ctx.saved_tensors
        takes_x, _, _, needs_a, needs_b, _, _, _, *goes_through = ctx.needs_input_grad
        needs_x = takes_x or any(goes_through)
        down, up = a.to(grad.dtype), b.to(grad.dtype)
        grad_x = grad_a = grad_b = None
        with exactly(grad.device.type):
            recipe = ctx.recipe and ctx.recipe.with_tensors(made_from)
            if x is None and (needs_a or (needs_b and hidden is None)):
                x = recipe.make().to(ctx.dtype)
                x = x.reshape(-1, x.shape[-1])
            merged = needs_x and ctx.merges and merges_backward(len(grad), weight.shape[0])
            grad_hidden = grad[:, :0]
            # which side is transposed matters: products with a side of `rank` have a slow order
            if needs_a or (needs_x and not merged):
                grad_hidden = F.linear(grad, (up.T * ctx.scale).contiguous())
            if needs_a or (needs_b and hidden is None):
                x = _dropped(x, mask, ctx.dropout)
            if needs_b:
                given = F.linear(x, down) if hidden is None else hidden
                grad_b = (given.T @ grad).T.mul(ctx.scale).to(b.dtype)
            if needs_a:
                grad_a = (grad_hidden.T @ x).to(a.dtype)
            del x  # made again, it is as large as the gradient that comes now
            if merged:
                grad_x = grad @ torch.addmm(weight, up, down, alpha=ctx.scale)
            elif needs_x and mask is None:
                grad_x = (grad @ weight).addmm_(grad_hidden, down)
            elif needs_x:
                grad_x = (grad @ weight).add_(_dropped(grad_hidden @ down, mask, ctx.dropout))
            if any(goes_through):
                grad_x, goes_through = None, [recipe.back(grad_x)]
            else:
                goes_through = [None] * len(goes_through)
        return grad_x, None, None, grad_a, grad_b, None, None, None, *goes_through


def _dropped(x: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    if mask is None:
        return x
    return x * mask * (1 / (1 - dropout) if dropout < 1 else 0.0)
