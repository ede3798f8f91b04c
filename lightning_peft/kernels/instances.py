"""Layers of ``peft`` that are still instances of the class of the layer that they replace.

A forward that asks ``isinstance(layer, nn.Linear)`` takes the same branch with an adapter as
without one. The class is made for the pair of ``peft``'s class and the layer's own; copies and
pickles have it as well.
"""

from __future__ import annotations

import functools
from contextlib import suppress
from typing import Any

from torch import nn

__all__ = [
    "assembled",
    "class_of_peft",
    "derived",
    "ingredients",
    "keep_class",
    "with_class_of_peft",
]

_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
_SETTINGS = (bool, int, float, str, tuple, type(None))
_HARMLESS = {"forward", "extra_repr", "__annotations__", "__dict__", "__module__", "__weakref__"}
_MACHINERY = set(dir(nn.Module)) - set(dir(object)) - _HARMLESS


def keep_class(layer: Any) -> None:
    """Make a layer of ``peft`` an instance of its base layer's class as well.

    It also gets the settings of the base layer that ``peft`` does not have itself, such as
    ``in_channels`` and ``padding`` of a convolution, which a forward may read.

    Args:
        layer: The layer; its class becomes a subclass of both.
    """
    for name, value in vars(layer.base_layer).items():
        is_setting = isinstance(value, _SETTINGS) and not name.startswith("_")
        if is_setting and not hasattr(layer, name):
            setattr(layer, name, value)
    kind = _kind_of(layer.base_layer)
    if kind is not None and not isinstance(layer, kind):
        own: Any = type(layer)
        # the classes of some quantised layers cannot be combined with another
        with suppress(TypeError):
            layer.__class__ = _both(own, kind)


def class_of_peft(layer: nn.Module) -> type[nn.Module]:
    """Return a layer's class without what :func:`keep_class` added."""
    kind: type[nn.Module] = ingredients(type(layer))[0]
    return kind


def with_class_of_peft(layer: Any, kind: Any) -> None:
    """Change the class of ``peft`` of a layer, which keeps the class of its base layer.

    Args:
        layer: The layer.
        kind: The new class.
    """
    layer.__class__ = assembled(kind, ingredients(type(layer))[1])


def derived(bases: tuple[Any, ...], again: Any, arguments: tuple[Any, ...], **own: Any) -> Any:
    """Make a class with the name of its first base, whose instances copy and pickle.

    Args:
        bases: Its bases.
        again: A function of a module that makes an empty instance of the class.
        arguments: Its arguments.
        **own: The attributes of the class.
    """
    kind = bases[0]

    def reduce(self: Any, protocol: Any) -> Any:
        return again, arguments, self.__getstate__()

    namespace = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
        "__reduce_ex__": reduce,
        **own,
    }
    return type(kind.__name__, bases, namespace)


def ingredients(kind: Any) -> tuple[Any, Any]:
    """Return the class of ``peft`` and the other one, or ``None``, of a class of its layers."""
    also = vars(kind).get("_also")
    return (kind if also is None else kind.__mro__[1]), also


def assembled(kind: Any, also: Any) -> Any:
    """Return the class of its :func:`ingredients`."""
    return kind if also is None else _both(kind, also)


def _kind_of(base: nn.Module) -> Any:
    """Return the class of a base layer, or the nearest whose methods another class can have."""
    for kind in type(base).__mro__:
        if kind in _KINDS:
            return kind
        if not issubclass(kind, _KINDS):
            is_conv1d = kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")
            return kind if is_conv1d else None
        own = vars(kind)
        properties = any(isinstance(value, property) for value in own.values())
        if not (properties or _MACHINERY & set(own)):
            return kind
    return None


def _restore(kind: Any, also: Any) -> nn.Module:
    made: nn.Module = object.__new__(_both(kind, also))
    return made


@functools.cache
def _both(kind: Any, also: Any) -> Any:
    def assign(self: Any, name: str, value: Any) -> None:
        # code that writes ``layer.bias += 0.1`` means the layer; peft has a property of that name
        if name in ("weight", "bias") and isinstance(value, nn.Parameter):
            setattr(self.base_layer, name, value)
        else:
            kind.__setattr__(self, name, value)

    own = {
        "_also": also,
        "__setattr__": assign,
        "extra_repr": kind.extra_repr,
        "forward": kind.forward,
    }
    return derived((kind, also), _restore, (kind, also), **own)
