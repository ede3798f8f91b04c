"""A convolution and its low-rank update as one autograd function.

``peft``'s LoRA of a convolution is a convolution to ``rank`` channels, followed by a 1 x 1
convolution. Their product is a kernel of the base's own shape, so the base convolution with another
weight computes the sum of both.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_peft.kernels.histories import recipe_of
from lightning_peft.kernels.products import EXACT, autocast_dtype, exactly, refuse_second
from lightning_peft.kernels.rebuild import Rebuilds, Recipe, parted

__all__ = ["Geometry", "low_rank_conv"]


class Geometry(NamedTuple):
    """Stride, padding and dilation of a convolution, one number for each of its dimensions."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the convolution of ``x`` with a weight."""
        still = (0,) * len(self.stride)
        return torch.convolution(x, weight, bias, *self, False, still, 1)

    def back(self, grad: Tensor, x: Tensor, weight: Tensor, *, to_input: bool) -> Tensor:
        """Return the gradient of its input, or of its weight."""
        still = (0,) * len(self.stride)
        found = torch.ops.aten.convolution_backward(
            grad, x, weight, None, *self, False, still, 1, [to_input, not to_input, False]
        )
        gradient: Tensor = found[0 if to_input else 1]
        return gradient


def low_rank_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scale: float,
    geometry: Geometry,
    *,
    memory: Rebuilds = "high",
) -> Tensor:
    """Compute ``conv(x, W) + bias + scale conv1x1(conv(x, A), B)`` for a frozen ``W``.

    In float32 and float64 it is one convolution with ``W + scale B A``; in half precision, which
    would round that sum too much, the update is added in place.

    Args:
        x: Input ``(N, n, ...)`` with one to three dimensions of space.
        weight: Frozen weight ``(m, n, k...)``, of one group.
        bias: Frozen bias ``(m,)``, or ``None``.
        a: ``A``, ``(r, n, k...)``.
        b: ``B``, ``(m, r, 1...)``.
        scale: The factor s.
        geometry: Stride, padding and dilation of ``W`` and ``A``.
        memory: Which tensors may be recomputed in the backward pass instead of being kept.

    Returns:
        ``(N, m, ...)``.
    """
    dtype = autocast_dtype(x, weight)
    recipe = recipe_of(x, memory) if a.requires_grad or b.requires_grad else None
    how, made_from = parted(None if recipe is None else recipe.detached())
    out = _LowRankConv.apply(
        x.to(dtype),
        weight.to(dtype),
        None if bias is None else bias.to(dtype),
        a,
        b,
        scale,
        geometry,
        how,
        *made_from,
    )
    assert isinstance(out, Tensor)
    return out


def _merged(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    flat = torch.addmm(weight.flatten(1), b.flatten(1), a.flatten(1), alpha=scale)
    return flat.view(weight.shape)


class _LowRankConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scale: float,
        geometry: Geometry,
        recipe: Recipe | None,
        *made_from: Tensor | None,
    ) -> Tensor:
        ctx.scale, ctx.geometry, ctx.recipe = scale, geometry, recipe
        ctx.shape, ctx.dtype, ctx.merges = x.shape, x.dtype, x.dtype in EXACT
        down, up = a.to(x.dtype), b.to(x.dtype)
        with exactly(x.device.type):
            if ctx.merges:
                out = geometry.convolve(x, _merged(weight, down, up, scale), bias)
            else:
                out = geometry.convolve(x, weight, bias)
                out.add_(_pointwise(geometry.convolve(x, down), up), alpha=scale)
        trained = ctx.needs_input_grad[3] or ctx.needs_input_grad[4]
        kept = x if trained and recipe is None else None
        ctx.save_for_backward(weight, a, b, kept, *made_from)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, a, b, x, *made_from = ctx.saved_tensors
        needs_x, _, _, needs_a, needs_b, *_ = ctx.needs_input_grad
        refuse_second(x is None and (needs_a or needs_b))
        geometry, down, up = ctx.geometry, a.to(grad.dtype), b.to(grad.dtype)
        grad_x = grad_a = grad_b = None
        with exactly(grad.device.type):
            if x is None and (needs_a or needs_b):
                x = ctx.recipe.with_tensors(made_from).make().to(ctx.dtype)
            grad_hidden = grad[:, :0]
            if needs_a or (needs_x and not ctx.merges):
                grad_hidden = _pointwise(grad, up.transpose(0, 1) * ctx.scale)
            if needs_a:
                grad_a = geometry.back(grad_hidden, x, down, to_input=False).to(a.dtype)
            if needs_b:
                hidden = geometry.convolve(x, down).flatten(2)
                product = (hidden @ grad.flatten(2).transpose(1, 2)).sum(0)
                grad_b = product.T.mul(ctx.scale).view(b.shape).to(b.dtype)
            if needs_x:
                like = grad.new_empty(1).expand(ctx.shape)
                if ctx.merges:
                    merged = _merged(weight, down, up, ctx.scale)
                    grad_x = geometry.back(grad, like, merged, to_input=True)
                else:
                    grad_x = geometry.back(grad, like, weight, to_input=True)
                    grad_x.add_(geometry.back(grad_hidden, like, down, to_input=True))
        return grad_x, None, None, grad_a, grad_b, *(None,) * (len(ctx.needs_input_grad) - 5)


def _pointwise(x: Tensor, weight: Tensor) -> Tensor:
    """Return the 1 x 1 convolution of ``(N, n, ...)`` with ``(m, n, 1...)``."""
    return (weight.flatten(1) @ x.flatten(2)).view(len(x), len(weight), *x.shape[2:])
