"""The weights of a layer as its own forward reads them, and how to write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_peft.anatomy.names import parameter_at
from lightning_peft.methods.in_weight.part import Part

__all__ = [
    "needed_value",
    "own_value",
    "own_values",
    "parameters_of",
    "restore",
    "write",
    "write_all",
]

_CLOSE = 1e-5
"""The largest relative error of a weight that is written through a parametrization."""


def own_value(module: nn.Module, name: str) -> Tensor | None:
    """Return a weight of a layer without any update, or ``None`` if the layer has none.

    Args:
        module: The layer, or a part of one.
        name: ``"weight"`` or another attribute that its forward reads.
    """
    start: Any = getattr(module, "_start", None)  # what other updates have made of it
    if start is not None and name in start:
        found: Tensor = start[name]
        return found
    if isinstance(module, Part):
        return module.own(name)
    parameter = module._parameters.get(name)
    if parameter is not None:
        return parameter
    held: Any = getattr(module, "parametrizations", {})
    return held[name]() if name in held else None


def needed_value(module: nn.Module, name: str) -> Tensor:
    """Return :func:`own_value` of a layer that has to have it.

    Args:
        module: The layer.
        name: The weight's name.

    Raises:
        ValueError: If it has none.
    """
    found = own_value(module, name)
    if found is None:
        raise ValueError(f"expected {type(module).__name__} to have a {name}, got none")
    return found


def own_values(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a layer that an update may change, by name, without any update."""
    names = dict.fromkeys(("weight", "bias", *module._parameters))
    found = {name: own_value(module, name) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def parameters_of(module: nn.Module, name: str) -> list[nn.Parameter]:
    """Return the registered parameters that hold a weight of a layer.

    Args:
        module: The layer, or a part of one.
        name: The weight's name.
    """
    if isinstance(module, Part):
        return [parameter_at(module.holder, module.attribute(name))]
    parameter = module._parameters.get(name)
    if parameter is not None:
        return [parameter]
    held: Any = getattr(module, "parametrizations", {})
    return list(held[name].parameters()) if name in held else []


@torch.no_grad()
def write(module: nn.Module, name: str, value: Tensor) -> dict[str, Tensor]:
    """Write a weight of a layer, so that its own forward reads it.

    Args:
        module: The layer, or a part of one.
        name: The weight's name.
        value: Its new value, of its dtype.

    Returns:
        What :func:`restore` needs to bring back what was there, bit for bit.

    Raises:
        ValueError: If a parametrization does not give the value back; nothing is changed then.
    """
    holder, attribute = module, name
    if isinstance(module, Part):
        holder, attribute = module.holder, module.attribute(name)
        value = value.reshape(parameter_at(holder, attribute).shape)
    parameter = holder._parameters.get(attribute)
    if parameter is not None:
        kept = {name: parameter.data}
        parameter.data = value
        return kept
    return _write_parametrized(module, name, value)


def write_all(module: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Write several weights of a layer, all of them or none.

    Args:
        module: The layer, or a part of one.
        values: The new values by name, each of its weight's dtype.

    Returns:
        What :func:`restore` needs.

    Raises:
        ValueError: As for :func:`write`; nothing is changed then.
    """
    kept: dict[str, Tensor] = {}
    try:
        for name, value in values.items():
            kept |= write(module, name, value.contiguous())
    except BaseException:
        restore(module, kept)
        raise
    return kept


@torch.no_grad()
def restore(module: nn.Module, kept: Mapping[str, Tensor]) -> None:
    """Bring back what :func:`write` replaced, on the device and in the dtype of the layer by now.

    Args:
        module: The layer, or a part of one.
        kept: The result of :func:`write`.
    """
    for name, before in kept.items():
        now: Tensor
        if isinstance(module, Part):
            now = parameter_at(module.holder, module.attribute(name))
        elif name in dict(module.named_parameters()):
            now = parameter_at(module, name)
        else:
            now = module.get_buffer(name)
        now.data = before.to(now)  # the layer may have been moved or cast since


def _write_parametrized(module: nn.Module, name: str, value: Tensor) -> dict[str, Tensor]:
    held = getattr(module, "parametrizations", {})
    if name not in held:
        raise ValueError(
            f"expected {type(module).__name__} to hold its {name} as a parameter, or as one with a "
            "parametrization of torch.nn.utils.parametrizations"
        )
    place = f"parametrizations.{name}."
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    kept = {key: t.detach().clone() for key, t in tensors.items() if key.startswith(place)}
    try:
        held[name].right_inverse(value)
        now = own_value(module, name)
        assert now is not None
        error = float((now - value).abs().max() / value.abs().max().clamp_min(1e-30))
    except Exception as cause:
        restore(module, kept)
        raise ValueError(
            f"the parametrization of {type(module).__name__}.{name} has no inverse"
        ) from cause
    if not error <= _CLOSE:
        restore(module, kept)
        raise ValueError(
            f"the parametrization of {type(module).__name__}.{name} cannot hold the merged weight, "
            f"which would be {error:.1e} off. Keep the adapter beside the weights"
        )
    return kept
