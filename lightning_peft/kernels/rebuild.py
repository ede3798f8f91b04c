"""Making an activation again in the backward pass, instead of keeping it.

What feeds an adapted layer is often made by an operation that costs little and whose own input the
graph keeps in any case: GELU keeps what it is given, and so does a layer norm. Then the layer need
not keep the result as well; it makes it again from what is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Memory", "Recipe", "is_looked_at", "parted", "recipe_of"]

Memory = Literal["default", "low", "high"]
"""What is made again: activation functions; layer norms as well (``low``); nothing (``high``)."""


class Recipe(NamedTuple):
    """How a tensor is made from others that are kept already.

    Attributes:
        kind: The name of the operation.
        options: Its arguments that are no tensors.
        tensors: What it is made from, shaped as they were; ``None`` for what is absent.
    """

    kind: str
    options: tuple[Any, ...]
    tensors: tuple[Tensor | None, ...]

    @property
    def slopes(self) -> bool:
        """Whether :meth:`back` knows the gradient."""
        return self.kind in ("gelu", "silu")

    def back(self, grad: Tensor) -> Tensor:
        """The gradient of what it is made from, written over that of what is made."""
        value = self.tensors[0]
        assert value is not None
        grad = grad.to(value.dtype).view(value.shape)
        if self.kind == "gelu":
            torch.ops.aten.gelu_backward.grad_input(
                grad, value, approximate=self.options[0], grad_input=grad
            )
        else:
            torch.ops.aten.silu_backward.grad_input(grad, value, grad_input=grad)
        return grad

    def detached(self) -> Recipe:
        """The same from tensors without a history; changes in place are still seen."""
        return self.with_tensors([None if t is None else t.detach() for t in self.tensors])

    def with_tensors(self, tensors: Sequence[Tensor | None]) -> Recipe:
        """The same with other tensors, such as the saved ones."""
        return self._replace(tensors=tuple(tensors))

    def make(self) -> Tensor:
        """The tensor, made again."""
        given: tuple[Any, ...] = self.tensors
        if self.kind == "gelu":
            return F.gelu(given[0], approximate=self.options[0])
        if self.kind == "silu":
            return F.silu(given[0])
        if self.kind == "product":
            product: Tensor = given[0] * given[1]
            return product
        value, mean, rstd, weight, bias = given
        made = (value - mean).mul_(rstd)
        if weight is None:
            return made.to(value.dtype)
        return (made * weight if bias is None else torch.addcmul(bias, made, weight)).to(
            value.dtype
        )


def recipe_of(x: Tensor, memory: Memory) -> Recipe | None:
    """Find out how ``x`` was made, if it is cheap to make again and costs no memory of its own.

    Args:
        x: What a layer is given.
        memory: What may be made again.

    Returns:
        The recipe, from tensors with their history; ``None`` where ``x`` has to be kept: its
        history is another, or something else (activation checkpointing, offloading, a compiler)
        decides what is kept.
    """
    if memory == "high" or torch.compiler.is_compiling() or x.grad_fn is None:
        return None
    node: Any = x.grad_fn
    kind = type(node).__name__
    if kind == "GeluBackward0" and _plain(node._raw_saved_self):
        return Recipe("gelu", (node._saved_approximate,), (node._saved_self,))
    if kind == "SiluBackward0" and _plain(node._raw_saved_self):
        return Recipe("silu", (), (node._saved_self,))
    if kind == "MulBackward0" and _plain(node._raw_saved_self) and _plain(node._raw_saved_other):
        # a gate: each side keeps the other
        return _product(node)
    if memory == "low" and kind == "NativeLayerNormBackward0" and _plain(node._raw_saved_input):
        return _layer_norm(node)
    return None


def _plain(saved: Any) -> bool:
    """Whether nobody has a hook on a saved tensor: looking at it would run theirs."""
    return saved.unpack_hook is None


def parted(recipe: Recipe | None) -> tuple[Recipe | None, tuple[Tensor | None, ...]]:
    """Part a recipe into words and tensors, which an autograd function has to be given apart."""
    return (None, ()) if recipe is None else (recipe.with_tensors(()), recipe.tensors)


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
    return Recipe("layer_norm", (), kept)
