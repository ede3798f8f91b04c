"""Which layers have to carry an update in their weight, and why."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import is_parametrized

from lightning_peft.anatomy.bypass import bypassed
from lightning_peft.methods.in_weight.part import Part, layer_at

__all__ = ["is_computed_by_hook", "never_called", "own_forward"]

_PRODUCTS: tuple[type[nn.Module], ...] = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding,
)  # fmt: skip
_FORWARDS = {kind.forward for kind in _PRODUCTS}
_CONVOLVE = {kind._conv_forward for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d)}


def never_called(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Return the layers whose weight is read by others, which do not call them, with the reason.

    Args:
        model: The backbone.
        names: Names of layers and parts to adapt.
    """
    layers = {name: layer_at(model, name) for name in names}
    found = bypassed(model, [n for n, layer in layers.items() if not isinstance(layer, Part)])
    for name, layer in layers.items():
        if isinstance(layer, Part):
            found[name] = f"{type(layer.holder).__name__} reads its {layer.attribute('weight')}"
    return found


def own_forward(layer: nn.Module) -> str | None:
    """Return why the output of a layer is not the plain product with its weight, or ``None``.

    Args:
        layer: A layer.
    """
    if not isinstance(layer, _PRODUCTS) or isinstance(layer, Part):
        return None
    if is_computed_by_hook(layer):
        return f"a hook computes the weight of this {type(layer).__name__}"
    if not _is_floating_point(layer):
        return None
    kind = type(layer).__name__
    if is_parametrized(layer, "weight"):
        return f"the weight of this {kind} is parametrized"
    if type(layer).forward not in _FORWARDS:
        return f"{kind} has a forward of its own"
    if isinstance(layer, _ConvNd):
        convolution: Any = type(layer)
        if convolution._conv_forward not in _CONVOLVE:
            return f"{kind} has a forward of its own"
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            return f"{kind} pads with {layer.padding_mode!r}, {layer.padding!r}"
        if any(step > 1 for step in layer.dilation):
            return f"{kind} is dilated"
    return None


def is_computed_by_hook(layer: nn.Module) -> bool:
    """Whether the old ``torch.nn.utils.weight_norm`` or ``spectral_norm`` computes the weight."""
    weight = layer.__dict__.get("weight")
    return weight is not None and "weight" not in layer._parameters


def _is_floating_point(layer: Any) -> bool:
    return bool(layer.weight is not None and layer.weight.is_floating_point())
