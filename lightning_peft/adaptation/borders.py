"""Layers in float32 inside a backbone in half precision: their inputs and outputs are cast."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from lightning_peft.anatomy.bypass import bypassed

__all__ = ["cast_at_border", "no_border", "tensors_of", "whole_layers"]


def whole_layers(
    model: nn.Module, trained: Collection[str], adapter: Collection[str]
) -> tuple[nn.Module, ...]:
    """Find the layers of which every parameter is trained in place, such as a head or a norm.

    Layers that share a tensor with another, whose weight other code reads, or that are trained in
    part (a bias) are none: they compute in one dtype with what is around them.

    Args:
        model: The adapted backbone.
        trained: Names of the parameters that are trained in place.
        adapter: Names of the adapter's tensors, which may be below such a layer.
    """
    counts: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            counts[id(parameter)] = counts.get(id(parameter), 0) + 1
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        own = [p for p in module._parameters.values() if p is not None]
        names = [f"{name}.{key}" if name else key for key, _ in module.named_parameters()]
        mine = [n for n in names if n not in adapter]
        plain = all(p.is_floating_point() and counts[id(p)] == 1 for p in own)
        if own and mine and plain and set(mine) <= set(trained) and name:
            found[name] = module
    past = bypassed(model, found)
    return tuple(m for n, m in found.items() if n not in past and not _in_attention(model, n))


def _in_attention(model: nn.Module, name: str) -> bool:
    """Whether a layer is one that ``nn.MultiheadAttention`` never calls."""
    above = name.rpartition(".")[0]
    while above:
        if isinstance(model.get_submodule(above), nn.MultiheadAttention):
            return True
        above = above.rpartition(".")[0]
    return False


class _Border:
    """The hooks of one layer; an object, so that the model can be copied and pickled."""

    def __init__(self, outside: torch.dtype) -> None:
        self.outside = outside

    def enter(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        dtype = next(p.dtype for p in layer._parameters.values() if p is not None)
        into = {name: _cast(value, dtype) for name, value in kwargs.items()}
        return tuple(_cast(value, dtype) for value in args), into

    def leave(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return _cast(output, self.outside)


def cast_at_border(layer: nn.Module, outside: torch.dtype) -> None:
    """Cast a layer's inputs to the dtype of its parameters, and its outputs back, from now on.

    Args:
        layer: The layer.
        outside: The dtype of what is around it.
    """
    no_border(layer)
    border = _Border(outside)
    layer.register_forward_pre_hook(border.enter, with_kwargs=True)
    layer.register_forward_hook(border.leave)


def no_border(layer: nn.Module) -> None:
    """Remove the casts of :func:`cast_at_border`, if there are any."""
    for hooks, further in (
        (layer._forward_pre_hooks, layer._forward_pre_hooks_with_kwargs),
        (layer._forward_hooks, layer._forward_hooks_with_kwargs),
    ):
        for number, hook in list(hooks.items()):
            if isinstance(getattr(hook, "__self__", None), _Border):
                del hooks[number]
                further.pop(number, None)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if type(value) in (tuple, list):
        return type(value)(_cast(item, dtype) for item in value)
    return value


def tensors_of(layers: Iterable[nn.Module]) -> Iterator[tuple[nn.Module, Tensor]]:
    """Yield the parameters and buffers of layers themselves, each with its layer."""
    for layer in layers:
        for tensor in chain(layer._parameters.values(), layer._buffers.values()):
            if tensor is not None:
                yield layer, tensor
