"""Recomputing an activation in the backward pass instead of keeping it.

The input of an adapted layer is often the result of a cheap operation whose own input the graph
keeps in any case, such as GELU or a layer norm. Then the adapted layer recomputes that result
instead of keeping it. If the input of GELU comes from another adapted layer (the first of an MLP),
it need not be kept either: it is recomputed too, at the price of that layer's product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_peft.kernels.products import EXACT, dropped, exactly, updated

__all__ = ["Held", "Memory", "Recipe", "Shared", "is_looked_at", "is_plain", "parted", "recipe_of"]

Memory = Literal["default", "low", "lowest", "high"]
"""What is recomputed: activation functions; layer norms as well (``low``); the first products of
MLPs as well (``lowest``; for a single layer, ``low`` means without them); nothing (``high``)."""


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
        inner: How to compute the first of these, if it is not kept.
        shared: The result, shared by all layers that need it.
    """

    kind: str
    options: tuple[Any, ...]
    tensors: tuple[Tensor | None, ...]
    inner: Recipe | None = None
    shared: Shared | None = None

    @property
    def slopes(self) -> bool:
        """Whether :meth:`back` can compute the gradient."""
        return self.kind in ("gelu", "silu")

    @property
    def all_tensors(self) -> tuple[Tensor | None, ...]:
        """The tensors of this recipe and of the inner ones."""
        return self.tensors + (self.inner.all_tensors if self.inner else ())

    def with_tensors(self, tensors: Sequence[Tensor | None]) -> Recipe:
        """Return the same recipe with other tensors, in the order of all_tensors."""
        mine, others = tuple(tensors[: len(self.tensors)]), tensors[len(self.tensors) :]
        inner = None if self.inner is None else self.inner.with_tensors(others)
        return self._replace(tensors=mine, inner=inner)

    def detached(self) -> Recipe:
        """Return the same recipe with detached tensors, which still show changes in place."""
        return self.with_tensors([None if t is None else t.detach() for t in self.all_tensors])

    def opened(self) -> Recipe:
        """Return the same recipe with its first tensor computed."""
        if self.inner is None:
            return self
        return self._replace(tensors=(self.inner.make(), *self.tensors[1:]), inner=None)

    def make(self) -> Tensor:
        """Compute the tensor."""

        def make() -> Tensor:
            made = self.opened()
            return _MADE[made.kind](*made.options, *made.tensors)

        return make() if self.shared is None else self.shared.get(make)

    def back(self, grad: Tensor) -> Tensor:
        """Return the gradient of its input, written over the gradient of its result."""
        value = self.tensors[0]
        assert value is not None
        grad = grad.to(value.dtype).view(value.shape)
        gelu = self.kind == "gelu"
        backward = torch.ops.aten.gelu_backward if gelu else torch.ops.aten.silu_backward
        options = {"approximate": self.options[0]} if gelu else {}
        if torch._C._functorch.is_legacy_batchedtensor(grad):  # of is_grads_batched
            given: Tensor = backward(grad, value, **options)
            return given
        backward.grad_input(grad, value, grad_input=grad, **options)
        return grad


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
    "layer_norm": _normalised,
    "low_rank": _low_rank,
}


def recipe_of(x: Tensor, memory: Memory) -> Recipe | None:
    """Find out how ``x`` was made, if recomputing it is cheap and takes no memory of its own.

    Args:
        x: The input of a layer.
        memory: What may be recomputed.

    Returns:
        The recipe, from tensors with their history; ``None`` if ``x`` has to be kept (its history
        is another one, or something else decides what is kept: activation checkpointing,
        offloading, a compiler) or if no backward pass will come.
    """
    if memory == "high" or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    if x.grad_fn is None:
        return None
    if x._version:  # written to under no_grad: recomputed, it would have its former values
        return None
    node: Any = x.grad_fn
    kind = type(node).__name__.removesuffix("Backward0")
    kept = _KEPT.get(kind, ())
    if not kept or not all(is_plain(getattr(node, f"_raw_saved_{name}")) for name in kept):
        return None
    if kind == "Gelu":
        return Recipe("gelu", (node._saved_approximate,), (node._saved_self,))
    if kind == "Silu":
        return Recipe("silu", (), (node._saved_self,))
    if kind == "Mul":
        return _product(node)
    return _layer_norm(node) if memory in ("low", "lowest") else None


_KEPT = {
    "Gelu": ("self",),
    "Silu": ("self",),
    "Mul": ("self", "other"),  # a gate: each side keeps the other
    "NativeLayerNorm": ("input",),
}
"""The tensors that each operation known here keeps for its own backward pass."""


def is_plain(saved: Any) -> bool:
    """Whether a saved tensor has no hooks: reading it would run them."""
    return saved.unpack_hook in (None, Held.let_go)


def parted(recipe: Recipe | None) -> tuple[Recipe | None, tuple[Tensor | None, ...]]:
    """Split a recipe from its tensors, which an autograd function has to receive separately."""
    if recipe is None:
        return None, ()
    return recipe.with_tensors([None] * len(recipe.all_tensors)), recipe.all_tensors


def is_looked_at(x: Tensor) -> bool:
    """Whether the gradient of ``x`` itself is observed, by a hook or ``retain_grad``."""
    return bool(x._backward_hooks) or x.retains_grad


def _product(node: Any) -> Recipe | None:
    one, other = node._saved_self, node._saved_other
    if one is None or other is None:  # a frozen factor: the product's input is not kept
        return None
    return Recipe("product", (), (one, other))


def _layer_norm(node: Any) -> Recipe | None:
    value, weight, bias = node._saved_input, node._saved_weight, node._saved_bias
    if len(node._saved_normalized_shape) != 1:
        return None
    kept = (value, node._saved_result1, node._saved_result2, weight, bias)
    # query, key and value have the same input
    shared = node.metadata.setdefault("lightning_peft", Shared())
    shared.users += 1
    return Recipe("layer_norm", (), kept, shared=shared)
