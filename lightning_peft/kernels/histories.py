"""Finding out from its history how a tensor was made, and whether that can be done again.

An operation that is known here is recognised by its node of the autograd graph, and read off what
that node keeps for its own backward pass.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lightning_peft.kernels.rebuild import Held, Rebuilds, Recipe, Shared

__all__ = ["gate_of", "is_looked_at", "is_plain", "recipe_of"]


def recipe_of(x: Tensor, memory: Rebuilds) -> Recipe | None:
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
    kind = _kind(node)
    if kind not in _KEPT or not _keeps(node, _KEPT[kind]):
        return None
    if kind in ("Gelu", "Silu"):
        return _activation(node)
    norms = memory in ("low", "gates", "lowest")
    if kind == "Mul":
        return (
            _gelu_in_steps(node) or _product(node) or (_rms_norm(node, x.dtype) if norms else None)
        )
    if kind == "ToCopy":
        return _rms_norm(node, x.dtype) if norms else None
    return _layer_norm(node) if norms else None


def gate_of(recipe: Recipe) -> Recipe:
    """Write a product of an activation and another tensor as one operation, a gate.

    Its gradients go past the product and the activation function, so that the output of the latter,
    which the product keeps, is released.

    Args:
        recipe: Any recipe, from tensors with their history.

    Returns:
        The gate, from the input of the activation function and the other factor; the recipe itself
        if it is none, or if somebody looks at the gradient of the activation.
    """
    if recipe.kind != "product":
        return recipe
    for place in (0, 1):
        active, other = recipe.tensors[place], recipe.tensors[1 - place]
        assert active is not None
        if active._version or is_looked_at(active) or other is None or other.shape != active.shape:
            continue
        made = _activation(active.grad_fn)
        if made is not None and other.dtype == active.dtype:
            return Recipe("gate", (made.kind, made.options), (*made.tensors, other))
    return recipe


_KEPT = {
    "Gelu": ("self",),
    "Silu": ("self",),
    "Mul": ("self", "other"),  # each side keeps the other
    "ToCopy": (),
    "NativeLayerNorm": ("input",),
}
"""The tensors that each operation known here keeps for its own backward pass."""


def _keeps(node: Any, names: tuple[str, ...]) -> bool:
    """Whether what a node keeps can be read without running hooks."""
    return all(is_plain(getattr(node, f"_raw_saved_{name}")) for name in names)


def is_plain(saved: Any) -> bool:
    """Whether a saved tensor has no hooks: reading it would run them."""
    return saved.unpack_hook in (None, Held.let_go)


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


def _activation(node: Any) -> Recipe | None:
    kind = _kind(node)
    if kind not in ("Gelu", "Silu") or not _keeps(node, ("self",)):
        return None
    options = (node._saved_approximate,) if kind == "Gelu" else ()
    return Recipe(kind.lower(), options, (node._saved_self,))


def _kind(node: Any) -> str:
    return type(node).__name__.removesuffix("Backward0")


def _gelu_in_steps(node: Any) -> Recipe | None:
    """Read GELU with a hyperbolic tangent where it is written in single operations, as in GPT-2.

    ``0.5 * x * (1 + tanh(0.797885 * (x + 0.044715 * x ** 3)))``, of which the 1 is the only
    constant that no node keeps.
    """
    half, other = (following for following, _ in node.next_functions)
    nodes = _path(other, ("Add", 0), ("Tanh", 0), ("Mul", 0), ("Add", 1), ("Mul", 0), ("Pow", 0))
    if nodes is None:
        return None
    _, _, scale, inner, cubic, power, x = nodes
    constants = ((half, 0.5), (scale, math.sqrt(2 / math.pi)), (cubic, 0.044715))
    if not all(_times(step, value) for step, value in constants) or not _keeps(power, ("self",)):
        return None
    starts = (half.next_functions[0][0], inner.next_functions[0][0], x)
    if power._saved_exponent != 3 or any(start is not x for start in starts):
        return None
    return Recipe("gelu", ("tanh",), (power._saved_self,))


def _path(node: Any, *steps: tuple[str, int]) -> list[Any] | None:
    """Follow nodes of given kinds by the places of their inputs; ``None`` if one is another."""
    found = [node]
    for kind, place in steps:
        following = () if found[-1] is None else found[-1].next_functions
        if len(following) <= place or _kind(found[-1]) != kind:
            return None
        found.append(following[place][0])
    return found


def _times(node: Any, value: float) -> bool:
    """Whether a node is a product with a number."""
    if node is None or _kind(node) != "Mul":
        return False
    factor = node._saved_other
    return factor is not None and factor.dim() == 0 and math.isclose(factor, value, rel_tol=1e-2)


def _rms_norm(node: Any, dtype: torch.dtype) -> Recipe | None:
    """Read a root mean square norm: the input over its size, cast or not, times a frozen weight."""
    last = node
    if _kind(node) == "ToCopy":
        ((node, _),) = node.next_functions
    if _kind(node) != "Mul" or not _keeps(node, ("self", "other")):
        return None
    factors, before = (node._saved_self, node._saved_other), [n for n, _ in node.next_functions]
    weight = next((f for f in factors if f is not None), None)
    scaled = next((n for n in before if n is not None), None)
    if weight is None or None not in before or scaled is None or weight.requires_grad:
        return None
    between = scaled._input_metadata[0].dtype
    if _kind(scaled) == "ToCopy":
        ((scaled, _),) = scaled.next_functions
    if _kind(scaled) != "Mul" or not _keeps(scaled, ("self", "other")):
        return None
    value, rstd = scaled._saved_self, scaled._saved_other
    if value is None or rstd is None or type(rstd.grad_fn).__name__ != "RsqrtBackward0":
        return None
    if rstd.shape != (*value.shape[:-1], 1) or weight.shape != value.shape[-1:]:
        return None
    shared = last.metadata.setdefault("lightning_peft", Shared())
    shared.users += 1
    return Recipe("rms_norm", (between, dtype), (value, rstd, weight), shared=shared)
