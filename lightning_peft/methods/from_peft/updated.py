"""What a tuner of ``peft`` makes of the weight and the bias of a layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_peft.kernels.products import exactly
from lightning_peft.methods.in_weight.reading import alone
from lightning_peft.methods.in_weight.values import own_value

__all__ = ["ADDITIVE", "changes_bias", "is_dora", "tuner_class", "updated"]

ADDITIVE = ("LORA", "ADALORA", "LOHA", "LOKR")
"""Tuners whose ``get_delta_weight`` is a differentiable ``dW`` for layers of any kind."""


def updated(layer: Any, dtype: torch.dtype | None = None) -> dict[str, Tensor | None]:
    """Return the weight and the bias of a layer of ``peft`` with its active adapters.

    Args:
        layer: The layer.
        dtype: The dtype to compute in; ``None`` computes in the adapter's and returns the base's.
    """
    weight, bias = (own_value(layer.base_layer, name) for name in ("weight", "bias"))
    assert weight is not None
    own = weight.dtype
    if dtype is not None:
        weight = weight.to(dtype)
    names = _names(layer)
    way = _way(layer, names)
    for name in names:
        if way == "factors":
            weight = _with_factors(layer, name, weight, dropped=dtype is None)
        elif way == "added":
            delta = layer.get_delta_weight(name).reshape(weight.shape)
            if dtype is None:
                delta = _with_dropout(layer, name, delta)
            weight = weight.to(torch.promote_types(weight.dtype, delta.dtype)) + delta
        elif way == "dora":
            weight = _dora(layer, name, weight)
    if way == "outputs":
        weight, bias = _by_outputs(layer, weight, bias)
    return {"weight": weight.to(dtype or own), "bias": bias}


def _names(layer: Any) -> list[str]:
    """Return the adapters of a layer that take part in its forward."""
    if layer.disable_adapters or layer.merged_adapters:
        return []
    return [name for name in layer.active_adapters if name in layer._get_available_adapters()]


def _way(layer: Any, names: list[str]) -> str:
    """Return how the weight is computed with some adapters; only ``"outputs"`` has a new bias."""
    if not names:
        return "none"
    kind = _kind(layer)
    variants = getattr(layer, "lora_variant", {})
    if kind == "LORA" and not variants and all(_has_factors(layer, name) for name in names):
        return "factors"
    if kind in ADDITIVE and not any(name in variants for name in names):
        return "added"
    if kind == "LORA" and all(is_dora(layer, name) for name in names):
        return "dora"
    return "outputs"


def _has_factors(layer: Any, name: str) -> bool:
    """Whether ``dW`` is the product of two matrices with the rows and columns of ``W``."""
    # those of an embedding are parameters; those of a grouped convolution are blocks
    grouped = getattr(layer.base_layer, "groups", 1) != 1
    turned = getattr(layer, "fan_in_fan_out", False)
    return name in layer.lora_A and not grouped and not turned


def _with_factors(layer: Any, name: str, weight: Tensor, dropped: bool) -> Tensor:
    """Return ``W + s B A`` in one pass over the weight, forward and backward."""
    up, down = layer.lora_B[name].weight, layer.lora_A[name].weight
    if dropped:
        down = _with_dropout(layer, name, down)
    exact = torch.promote_types(torch.promote_types(weight.dtype, up.dtype), down.dtype)
    if weight.device.type == "cpu":  # whose products in half precision are slow
        exact = torch.promote_types(exact, torch.float32)
    matrices = [factor.flatten(1).to(exact) for factor in (weight, up, down)]
    with exactly(weight.device.type):  # under autocast the weight would be rounded, too
        return torch.addmm(*matrices, alpha=layer.scaling[name]).reshape(weight.shape)


def _kind(layer: Any) -> str:
    """Return the name of a layer's tuner, which is its package in ``peft``."""
    for cls in type(layer).__mro__:
        if cls.__module__.startswith("peft.tuners."):
            return cls.__module__.split(".")[2].upper()
    raise TypeError(f"expected a layer of peft, got {type(layer).__name__}")


def _with_dropout(layer: Any, name: str, delta: Tensor) -> Tensor:
    """Drop features of the update's input, the same for every token of a forward.

    ``peft`` drops entries of the input itself, each token's own; a weight has one input for all.
    """
    dropouts = getattr(layer, "lora_dropout", {})
    if not layer.training or name not in dropouts or isinstance(dropouts[name], nn.Identity):
        return delta
    kept: Tensor = dropouts[name](delta.new_ones(1, delta.shape[1], *(1,) * (delta.ndim - 2)))
    return delta * kept


def is_dora(layer: Any, name: str) -> bool:
    """Whether an adapter of a LoRA layer is DoRA."""
    return name in layer.lora_magnitude_vector


def _dora(layer: Any, name: str, weight: Tensor) -> Tensor:
    """Return ``m (W + s B A) / |W + s B A|``, with the norm as a constant, as ``peft`` has it."""
    magnitude = layer.lora_magnitude_vector[name]
    up, down = layer.lora_B[name].weight, layer.lora_A[name].weight
    change = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    weight = weight.to(torch.promote_types(weight.dtype, change.dtype))
    scaling = layer.scaling[name]
    norm = magnitude.get_weight_norm(weight, change.detach(), scaling=scaling).detach()
    factor = (magnitude.weight / norm).reshape(-1, *(1,) * (weight.ndim - 1))
    return factor * (weight + scaling * change)


def _by_outputs(layer: Any, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the matrix and the shift of a linear layer, from its outputs.

    ``f(x) = x W^T + b`` for the rows of the identity matrix and for zero.
    """
    inputs = weight.shape[1]
    rows = torch.zeros(1, inputs + 1, inputs, dtype=weight.dtype, device=weight.device)
    rows[0, :inputs] = torch.eye(inputs, dtype=weight.dtype, device=weight.device)
    base = layer.base_layer
    with alone():
        base._held = {"weight": weight, "bias": None if bias is None else bias.to(weight.dtype)}
        layer._computing = True
        try:
            outputs: Tensor = tuner_class(layer).forward(layer, rows)[0]
        finally:
            base._held = None
            layer._computing = False
    shift = outputs[inputs]
    return (outputs[:inputs] - shift).T, None if bias is None else shift


def changes_bias(layer: Any) -> bool:
    """Whether the bias is computed, and not the base layer's own."""
    return _way(layer, _names(layer)) == "outputs"


def tuner_class(layer: Any) -> Any:
    """Return the class of a layer before its update was put in the weight."""
    order = type(layer).__mro__  # FSDP2 puts a class of its own in front
    made = next((i for i, kind in enumerate(order) if "in_weight" in vars(kind)), -1)
    return order[made + 1]
