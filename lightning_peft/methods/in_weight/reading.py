"""Layers whose weight is read with its update: a subclass of the layer's own class, made for it.

The subclass has a property for each changed weight, over the registered parameter, which keeps its
name. Instances are copied and pickled like those of the class itself.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lightning_peft.kernels.instances import derived
from lightning_peft.methods.in_weight.part import Part
from lightning_peft.methods.in_weight.values import own_value

__all__ = [
    "Update",
    "alone",
    "call_with",
    "own_class",
    "read_with_updates",
    "read_without_updates",
]

_LOCK = threading.RLock()


class Update(nn.Module):
    """The base of adapters that can be a change of their host's weights.

    Attributes:
        in_weight: Whether the change is in the weights that the forward reads, and not in hooks.
    """

    in_weight: bool = False

    @property
    def active(self) -> bool:
        """Whether it takes part in the forward."""
        return True

    def merged(self, host: nn.Module) -> dict[str, Tensor]:
        """Return the host's weights with the change folded in, by name."""
        raise NotImplementedError


def read_with_updates(module: nn.Module, names: Iterable[str]) -> None:
    """Make a module's weights be read with their updates.

    The updates are those of the module's children that are an :class:`Update` in the weight, and of
    its parts.

    Args:
        module: The module; its class becomes a subclass of what it was.
        names: The weights that may change.
    """
    read = tuple(sorted({*getattr(type(module), "_read", ()), *names}))
    kind: Any = own_class(module)
    module.__class__ = _reading_class(kind, read)
    if isinstance(module, nn.RNNBase):
        module.__dict__.pop("_flat_weights", None)  # a list of the weights without updates


def read_without_updates(module: nn.Module) -> None:
    """Give a module its own class back."""
    module.__class__ = own_class(module)
    for key in ("_held", "_start"):
        module.__dict__.pop(key, None)
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()


def own_class(module: nn.Module) -> type[nn.Module]:
    """Return the class of a module without its updates."""
    kind = type(module)
    return kind.__mro__[1] if "_read" in vars(kind) else kind


def call_with(module: Any, weights: Mapping[str, Tensor | None], args: Any, kwargs: Any) -> Any:
    """Call a module whose forward reads given weights instead of its own.

    Args:
        module: A module with a class of :func:`read_with_updates`.
        weights: The weights by name.
        args: The arguments.
        kwargs: The keyword arguments.
    """
    with alone():
        module._held = dict(weights)
        try:
            return module(*args, **kwargs)
        finally:
            module._held = None


def alone() -> AbstractContextManager[Any]:
    """Keep other threads out: what a running forward reads is noted on its module.

    A compiled forward needs none of it, as the notes are gone after its trace.
    """
    return nullcontext() if torch.compiler.is_compiling() else _LOCK


def _value(module: Any, name: str) -> Tensor | None:
    """Return a weight with its updates."""
    registered = module._parameters.get(name)
    if hasattr(registered, "device_mesh") and _is_asked_by_torch_distributed():
        own: Tensor = registered
        return own
    with alone():
        held = module._held
        if held is not None and name in held:
            found: Tensor | None = held[name]
            return found
        values = _computed(module, name)
        if held is not None:
            held.update({**values, **held})  # others are computed with it
        return values[name]


def _is_asked_by_torch_distributed() -> bool:
    """Whether FSDP2 or a distributed checkpoint looks for a shard, which they do by attribute."""
    name: str = sys._getframe(2).f_globals.get("__name__", "")
    return name.startswith("torch.distributed.")


def _computed(module: Any, name: str) -> dict[str, Tensor | None]:
    """Return a weight with its updates, by name, and those that are computed with it."""
    own = own_value(module, name)
    if own is None:
        return {name: None}
    for child in module._modules.values():
        part = None if child is None else child._modules.get("base_layer", child)
        if isinstance(part, Part) and name in part.names.values():
            return _of_part(module, child, part, name)
    updates = [
        child
        for child in module._modules.values()
        if isinstance(child, Update) and child.in_weight and child.active
    ]
    if not updates:
        return {name: own}
    values = updates[0].merged(module)
    try:
        for update in updates[1:]:
            module._start = values
            values = {**values, **update.merged(module)}
    finally:
        module._start = None
    read = {key: values[key] for key in type(module)._read if key in values}
    return {name: own, **{key: value.to(own.dtype) for key, value in read.items()}}


def _of_part(module: Any, child: Any, part: Part, name: str) -> dict[str, Tensor | None]:
    """Return what a part, or the layer of `peft` around it, makes of its holder's weights."""
    if module._held is None:  # nobody keeps the others
        values = {key: getattr(child, key) for key, own in part.names.items() if own == name}
    else:
        values = child.weights()
    found: dict[str, Tensor | None] = {}
    for key, value in values.items():
        attribute = part.names[key]
        if attribute is not None and value is not None:
            own = own_value(module, attribute)
            assert own is not None
            found[attribute] = value.reshape(own.shape)
    return found


def _restore(kind: Any, read: tuple[str, ...]) -> nn.Module:
    made: nn.Module = object.__new__(_reading_class(kind, read))
    return made


@functools.cache
def _reading_class(kind: Any, read: tuple[str, ...]) -> type[nn.Module]:
    """Make the subclass of a class that reads some weights with their updates."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        # a forward may read a weight several times; a compiled one computes it once by itself
        if torch.compiler.is_compiling():
            return kind.forward(self, *args, **kwargs)
        with alone():
            if self._held is not None:
                return kind.forward(self, *args, **kwargs)
            self._held = {}
            try:
                return kind.forward(self, *args, **kwargs)
            finally:
                self._held = None

    own: dict[str, Any] = {
        "__module__": __name__,
        "_read": read,
        "_held": None,
        "_start": None,
        "forward": forward,
    }
    for name in read:
        own[name] = property(functools.partial(_value, name=name))
    if issubclass(kind, nn.RNNBase):
        own |= _recurrent()
    made: type[nn.Module] = derived((kind,), _restore, (kind, read), **own)
    return made


def _recurrent() -> dict[str, Any]:
    """Return what a recurrent layer needs besides: it reads a list of its weights."""

    def flat(self: Any) -> list[Any]:
        return [getattr(self, name, None) for name in self._flat_weights_names]

    def unchanged(self: Any) -> bool:
        return False

    def nothing(self: Any) -> None:  # of the list, and of one buffer for all that is in it
        return None

    return {
        "__setattr__": nn.Module.__setattr__,  # RNNBase's own changes the list too
        "_flat_weights": property(flat, lambda self, value: None),
        "_weights_have_changed": unchanged,
        "_init_flat_weights": nothing,  # after each move or cast
        "flatten_parameters": nothing,
    }
