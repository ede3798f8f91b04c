"""Making an activation again in the backward pass, instead of keeping it.

What feeds an adapted layer is often made by an operation that costs little and whose own input the
graph keeps in any case: GELU keeps what it is given, and so does a layer norm. Then the layer need
not keep the result as well; it makes it again from what is there. And where what GELU is given
comes from another adapted layer (the first of an MLP), that need not be kept either: for the price
of that layer's product it is made again too.
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
"""What is made again: activation functions; layer norms as well (``low``); the first products of
MLPs as well (``lowest``; of a layer, for which ``low`` means that they are not); nothing
(``high``)."""


class Held:
    """A tensor that somebody watches being kept, with ``saved_tensors_hooks(..., Held.let_go)``.

    Other hooks on saved tensors decide what is kept, and nothing is made again under them.

    Attributes:
        tensor: What is kept.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @staticmethod
    def let_go(held: Held) -> Tensor:
        """Give the tensor back."""
        return held.tensor


class Shared:
    """A tensor that several layers make again: made once, and gone after the last of them.

    Attributes:
        users: How many layers need it.
    """

    def __init__(self) -> None:
        self.users = 0
        self._given = 0
        self._value: Tensor | None = None

    def get(self, make: Callable[[], Tensor]) -> Tensor:
        """The tensor, made by the first who asks."""
        value = self._value
        if value is None:
            value = make()
        self._given += 1
        done = self._given >= self.users
        self._value, self._given = (None, 0) if done else (value, self._given)
        return value


class Recipe(NamedTuple):
    """How a tensor is made from others that are kept already.

    Attributes:
        kind: The name of the operation.
        options: Its arguments that are no tensors.
        tensors: What it is made from, shaped as they were; ``None`` for what is absent.
        inner: How the first of these is made, where it is not kept.
        shared: By all who make the same.
    """

    kind: str
    options: tuple[Any, ...]
    tensors: tuple[Tensor | None, ...]
    inner: Recipe | None = None
    shared: Shared | None = None

    @property
    def slopes(self) -> bool:
        """Whether :meth:`back` knows the gradient."""
        return self.kind in ("gelu", "silu")

    @property
    def all_tensors(self) -> tuple[Tensor | None, ...]:
        """Those of the inner recipes as well."""
        return self.tensors + (self.inner.all_tensors if self.inner else ())

    def with_tensors(self, tensors: Sequence[Tensor | None]) -> Recipe:
        """The same with other tensors, such as the saved ones; in the order of all_tensors."""
        mine, others = tuple(tensors[: len(self.tensors)]), tensors[len(self.tensors) :]
        inner = None if self.inner is None else self.inner.with_tensors(others)
        return self._replace(tensors=mine, inner=inner)

    def detached(self) -> Recipe:
        """The same from tensors without a history; changes in place are still seen."""
        return self.with_tensors([None if t is None else t.detach() for t in self.all_tensors])

    def opened(self) -> Recipe:
        """The same with its first tensor there."""
        if self.inner is None:
            return self
        return self._replace(tensors=(self.inner.make(), *self.tensors[1:]), inner=None)

    def make(self) -> Tensor:
        """The tensor, made again."""

        def make() -> Tensor:
            made = self.opened()
            return _MADE[made.kind](*made.options, *made.tensors)

        return make() if self.shared is None else self.shared.get(make)

    def back(self, grad: Tensor) -> Tensor:
        """The gradient of what it is made from, written over that of what is made."""
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
    """Find out how ``x`` was made, if it is cheap to make again and costs no memory of its own.

    Args:
        x: What a layer is given.
        memory: What may be made again.

    Returns:
        The recipe, from tensors with their history; ``None`` where ``x`` has to be kept: its
        history is another, or something else (activation checkpointing, offloading, a compiler)
        decides what is kept; and where no backward pass will come.
    """
    if memory == "high" or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    if x.grad_fn is None:
        return None
    if x._version:  # written to under no_grad: made again, it would be what it was before
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
"""What each operation that is known here keeps for its own backward pass."""


def is_plain(saved: Any) -> bool:
    """Whether nobody has a hook on a saved tensor: looking at it would run theirs."""
    return saved.unpack_hook in (None, Held.let_go)


def parted(recipe: Recipe | None) -> tuple[Recipe | None, tuple[Tensor | None, ...]]:
    """Part a recipe into words and tensors, which an autograd function has to be given apart."""
    if recipe is None:
        return None, ()
    return recipe.with_tensors([None] * len(recipe.all_tensors)), recipe.all_tensors


def is_looked_at(x: Tensor) -> bool:
    """Whether somebody has asked for the gradient of ``x`` itself."""
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
    # query, key and value are given the same
    shared = node.metadata.setdefault("lightning_peft", Shared())
    shared.users += 1
    return Recipe("layer_norm", (), kept, shared=shared)
