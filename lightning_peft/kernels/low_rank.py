"""``x W^T + b + s x A^T B^T`` as one autograd function, with the cheaper order of its products.

The plain forward makes two more tensors of the output's size (the update, and the sum), and its
backward two of the input's. Here the update is added into the base product (``addmm``), or, if
there are many rows, folded into the weight first: then forward and the gradient of the input are
one product each. Only what the backward pass needs is kept: ``x`` if ``A`` is trained (or the
tensors that ``x`` was made from, see :mod:`lightning_peft.kernels.rebuild`), ``x A^T`` of ``rank``
features otherwise, never the update.

The orders of the products are in :mod:`lightning_peft.kernels.products`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_peft.kernels.histories import gate_of, is_looked_at, is_plain, recipe_of
from lightning_peft.kernels.products import (
    EXACT,
    autocast_dtype,
    dropped,
    exactly,
    merges_backward,
    refuse_second,
    updated,
)
from lightning_peft.kernels.rebuild import Rebuilds, Recipe, parted

__all__ = ["low_rank_linear"]


def low_rank_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scale: float,
    *,
    dropout: float = 0.0,
    memory: Rebuilds = "high",
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
        dropout: Probability with which an entry of the input of ``A`` is dropped.
        memory: Which tensors may be recomputed in the backward pass instead of being kept.
        training: Whether to run the backward pass of an activation function here too, in place, if
            its result is recomputed. ``torch.autograd.grad`` does not see that result as a part of
            the graph; tensor hooks and ``retain_grad`` that it has by now are respected.

    Returns:
        ``(..., m)``.

    >>> x, w = torch.ones(2, 3), torch.zeros(4, 3)
    >>> low_rank_linear(x, w, None, torch.ones(1, 3), torch.ones(4, 1), 0.5)[0]
    tensor([1.5000, 1.5000, 1.5000, 1.5000])
    """
    dtype = autocast_dtype(x, weight)
    flat = x.reshape(-1, x.shape[-1]).to(dtype)
    recipe = recipe_of(x, memory) if a.requires_grad else None
    if recipe is not None and training and not is_looked_at(x):
        recipe = gate_of(recipe)
    through = recipe is not None and training and recipe.slopes and not is_looked_at(x)
    if recipe is not None and not through:
        recipe = recipe.detached()
    elif recipe is not None and memory in (
        ("gates", "lowest") if recipe.kind == "gate" else ("lowest",)
    ):
        recipe = _chained(recipe)
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


def _chained(recipe: Recipe) -> Recipe:
    """Recompute the inputs of an activation or a gate as well, from the layers that gave them."""
    return recipe._replace(inner=tuple(map(_given_by_a_layer, recipe.tensors)))


def _given_by_a_layer(value: Tensor | None) -> Recipe | None:
    """Return how to compute a tensor anew, if it comes from a layer of this kind."""
    node: Any = None if value is None else value.grad_fn
    if type(node).__name__ == "ViewBackward0":  # that gives the output its shape
        node = node.next_functions[0][0]
    if value is None or getattr(node, "_forward_cls", None) is not _LowRank:
        return None
    if value._version != node.version:  # written to under no_grad
        return None
    if not all(map(is_plain, node._raw_saved_tensors)):  # offloaded, or checkpointed
        return None
    weight, bias, a, b, mask, _, x, *made_from = node.saved_tensors
    how = node.recipe and node.recipe.with_tensors(made_from)
    if (x is None and how is None) or (how is not None and any(how.inner)):
        return None  # the other layer keeps no input, or has to recompute a product itself
    if how is not None and how.shared is not None:
        how.shared.users += 1
    options = (node.scale, node.dropout, value.shape)
    inner = () if how is None else (how,)
    return Recipe("low_rank", options, (x, weight, bias, a, b, mask), inner=inner).detached()


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
        ctx.merges = x.dtype in EXACT and not dropout
        given = mask = None
        with exactly(x.device.type):
            if dropout:
                given, mask = torch.native_dropout(x, dropout, True)
            out, hidden = updated(x, weight, bias, down, up, scale, given)
            trains_a = ctx.needs_input_grad[3]
            if trains_a and not ctx.merges:
                hidden = None  # x is kept for A, so x A^T is cheaper to recompute than to keep
            elif hidden is None and not trains_a:
                hidden = F.linear(x, down)  # otherwise there are few rows: it is no larger than A
        kept = x if trains_a and recipe is None else None
        if recipe is not None:
            made_from = recipe.with_tensors(made_from).kept
        ctx.save_for_backward(weight, bias, a, b, mask, hidden, kept, *made_from)
        counted = not (torch.compiler.is_compiling() or out.is_inference())
        ctx.version = out._version if counted else None
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, _, a, b, mask, hidden, x, *made_from = ctx.saved_tensors
        takes_x, _, _, needs_a, needs_b, _, _, _, *goes_through = ctx.needs_input_grad
        refuse_second(x is None and (needs_a or needs_b))
        if x is not None and torch.is_grad_enabled():
            hidden = None  # what is kept has no history for a second derivative
        needs_x = takes_x or any(goes_through)
        down, up = a.to(grad.dtype), b.to(grad.dtype)
        grad_x = grad_a = grad_b = None
        goes_back: tuple[Tensor | None, ...] = ()
        with exactly(grad.device.type):
            recipe = ctx.recipe and ctx.recipe.with_tensors(made_from)
            if recipe is not None:
                recipe = recipe.opened()
            if x is None and (needs_a or (needs_b and hidden is None)):
                x = recipe.make().to(ctx.dtype)
                x = x.reshape(-1, x.shape[-1])
            merged = needs_x and ctx.merges and merges_backward(len(grad), weight.shape[0])
            grad_hidden = grad[:, :0]
            # which side is transposed matters: products with a side of `rank` have a slow order
            if needs_a or (needs_x and not merged):
                grad_hidden = F.linear(grad, (up.T * ctx.scale).contiguous())
            if needs_a or (needs_b and hidden is None):
                x = dropped(x, mask, ctx.dropout)
            if needs_b:
                given = F.linear(x, down) if hidden is None else hidden
                grad_b = (given.T @ grad).T.mul(ctx.scale).to(b.dtype)
            if needs_a:
                grad_a = (grad_hidden.T @ x).to(a.dtype)
            del x  # recomputed, it is as large as the gradient that is computed next
            if merged:
                grad_x = grad @ torch.addmm(weight, up, down, alpha=ctx.scale)
            elif needs_x and mask is None:
                grad_x = (grad @ weight).addmm_(grad_hidden, down)
            elif needs_x:
                grad_x = (grad @ weight).add_(dropped(grad_hidden @ down, mask, ctx.dropout))
            if any(goes_through):
                grad_x, goes_back = None, recipe.back(grad_x)
            rest = [*goes_back, *[None] * len(goes_through)][: len(goes_through)]
        return grad_x, None, None, grad_a, grad_b, None, None, None, *rest
