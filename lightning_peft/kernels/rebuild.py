"""Recomputing an activation in the backward pass instead of keeping it.

The input of an adapted layer is often the result of a cheap operation whose own input the graph
keeps in any case, such as GELU, a gate or a norm. Then the adapted layer recomputes that result
instead of keeping it. If the input of GELU or of a gate comes from another adapted layer (the first
of an MLP), it need not be kept either: it is recomputed too, at the price of that layer's product.

What a tensor was made from is read off its history: :mod:`lightning_peft.kernels.histories`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_peft.kernels.products import EXACT, dropped, exactly, updated

__all__ = ["Held", "Memory", "Rebuilds", "Recipe", "Shared", "parted"]

Memory = Literal["default", "low", "lowest", "high"]
"""What is recomputed: activation functions and gates; norms as well (``low``); the first products
of MLPs as well (``lowest``); nothing (``high``)."""

Rebuilds = Literal["default", "low", "gates", "lowest", "high"]
"""The same for a single layer, where ``low`` means without the first products of MLPs; with
``gates`` those of gated MLPs are recomputed, of which there are two."""


class Held:
    """A saved tensor in a wrapper that ``saved_tensors_hooks(..., Held.let_go)`` unpacks.

    Under any other hooks on saved tensors, these decide what is kept, and nothing is recomputed.

    Attributes:
        tensor: The saved tensor.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @staticmethod
    def let_go(held: Held) -> Tensor:
        """Return the tensor."""
        return held.tensor


class Shared:
    """A tensor that several layers need again: computed once, and released after the last of them.

    Attributes:
        users: How many layers need it.
    """

    def __init__(self) -> None:
        self.users = 0
        self._given = 0
        self._value: Tensor | None = None

    def get(self, make: Callable[[], Tensor]) -> Tensor:
        """Return the tensor; the first call computes it."""
        value = self._value
        if value is None:
            value = make()
        self._given += 1
        done = self._given >= self.users
        self._value, self._given = (None, 0) if done else (value, self._given)
        return value


class Recipe(NamedTuple):
    """How to compute a tensor from others that are kept already.

    Attributes:
        kind: The name of the operation.
        options: Its arguments that are not tensors.
        tensors: Its tensor arguments, in their original shapes; ``None`` for an absent one.
        inner: For each of the first of these how to compute it, or ``None`` if it is kept.
        shared: The result, shared by all layers that need it.
    """

    kind: str
    options: tuple[Any, ...]
    tensors: tuple[Tensor | None, ...]
    inner: tuple[Recipe | None, ...] = ()
    shared: Shared | None = None

    @property
    def slopes(self) -> bool:
        """Whether :meth:`back` can compute the gradients."""
        return self.kind in ("gelu", "silu", "gate")

    @property
    def all_tensors(self) -> tuple[Tensor | None, ...]:
        """The tensors of this recipe and of the inner ones."""
        inner = (t for recipe in self.inner if recipe is not None for t in recipe.all_tensors)
        return (*self.tensors, *inner)

    @property
    def kept(self) -> tuple[Tensor | None, ...]:
        """The same, with ``None`` in place of what an inner recipe computes."""
        mine = list(self.tensors)
        for place, recipe in enumerate(self.inner):
            if recipe is not None:
                mine[place] = None
        inner = (t for recipe in self.inner if recipe is not None for t in recipe.kept)
        return (*mine, *inner)

    def with_tensors(self, tensors: Sequence[Tensor | None]) -> Recipe:
        """Return the same recipe with other tensors, in the order of all_tensors."""
        mine, rest = tuple(tensors[: len(self.tensors)]), tensors[len(self.tensors) :]
        inner: list[Recipe | None] = []
        for recipe in self.inner:
            inner.append(None if recipe is None else recipe.with_tensors(rest))
            rest = rest[0 if recipe is None else len(recipe.all_tensors) :]
        return self._replace(tensors=mine, inner=tuple(inner))

    def detached(self) -> Recipe:
        """Return the same recipe with detached tensors, which still show changes in place."""
        return self.with_tensors([None if t is None else t.detach() for t in self.all_tensors])

    def opened(self) -> Recipe:
        """Return the same recipe with the tensors computed that are not kept."""
        made = [recipe and recipe.make() for recipe in self.inner]
        tensors = [
            own if new is None else new for own, new in zip(self.tensors, made, strict=False)
        ]
        return self._replace(tensors=(*tensors, *self.tensors[len(made) :]), inner=())

    def make(self) -> Tensor:
        """Compute the tensor."""

        def make() -> Tensor:
            made = self.opened()
            return _MADE[made.kind](*made.options, *made.tensors)

        return make() if self.shared is None else self.shared.get(make)

    def back(self, grad: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of its tensors; the first is written over that of its result."""
        value = self.tensors[0]
        assert value is not None
        grad = grad.to(value.dtype).view(value.shape)
        if self.kind != "gate":
            return (_slope(self.kind, self.options, grad, value),)
        kind, options = self.options
        other = self.tensors[1]
        assert other is not None
        of_other = _over(_MADE[kind](*options, value), grad)
        return _slope(kind, options, _over(grad, other), value), of_other


def _slope(kind: str, options: tuple[Any, ...], grad: Tensor, value: Tensor) -> Tensor:
    """Return the gradient of an activation's input, written over that of its output."""
    backward = torch.ops.aten.gelu_backward if kind == "gelu" else torch.ops.aten.silu_backward
    named = {"approximate": options[0]} if kind == "gelu" else {}
    if _is_batched(grad):
        given: Tensor = backward(grad, value, **named)
        return given
    backward.grad_input(grad, value, grad_input=grad, **named)
    return grad


def _over(tensor: Tensor, factor: Tensor) -> Tensor:
    """Return a product, written over its first factor where that is possible."""
    batched = _is_batched(tensor) or _is_batched(factor)
    return tensor * factor if batched else tensor.mul_(factor)


def _is_batched(grad: Tensor) -> bool:
    return torch._C._functorch.is_legacy_batchedtensor(grad)  # of is_grads_batched


def _gelu(approximate: str, value: Tensor) -> Tensor:
    return F.gelu(value, approximate=approximate)


def _normalised(
    value: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    if mean.dtype not in EXACT:  # on a CPU in half precision: too coarse to subtract
        mean, rstd = value.mean(-1, keepdim=True, dtype=torch.float32), rstd.float()
    made = (value - mean).mul_(rstd)
    if weight is not None:
        made = made * weight if bias is None else torch.addcmul(bias, made, weight)
    return made.to(value.dtype)


def _gate(kind: str, options: tuple[Any, ...], value: Tensor, other: Tensor) -> Tensor:
    return _MADE[kind](*options, value).mul_(other)


def _rms(
    between: torch.dtype, dtype: torch.dtype, value: Tensor, rstd: Tensor, weight: Tensor
) -> Tensor:
    return ((value * rstd).to(between) * weight).to(dtype)


def _low_rank(
    scale: float,
    dropout: float,
    shape: torch.Size,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    mask: Tensor | None,
) -> Tensor:
    x = x.to(weight.dtype).reshape(-1, x.shape[-1])
    given = None if mask is None else dropped(x, mask, dropout)
    with exactly(x.device.type):
        made, _ = updated(x, weight, bias, a.to(x.dtype), b.to(x.dtype), scale, given)
    return made.view(shape)


_MADE: dict[str, Callable[..., Tensor]] = {
    "gelu": _gelu,
    "silu": F.silu,
    "product": torch.mul,
    "gate": _gate,
    "layer_norm": _normalised,
    "rms_norm": _rms,
    "low_rank": _low_rank,
}


def parted(recipe: Recipe | None) -> tuple[Recipe | None, tuple[Tensor | None, ...]]:
    """Split a recipe from its tensors, which an autograd function has to receive separately."""
    if recipe is None:
        return None, ()
    return recipe.with_tensors([None] * len(recipe.all_tensors)), recipe.all_tensors
