"""Layers of ``peft`` whose update is in the weight that a forward reads.

Where a layer's weight is read past it, or its forward is more than the product with the weight,
the class of ``peft``'s layer becomes a subclass whose ``weight`` is ``W + dW``. What a tuner makes
of a weight is its own ``get_delta_weight``, or, for tuners that do more than add, its output for
the rows of the identity matrix.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn

from lightning_peft.errors import MethodError
from lightning_peft.kernels.instances import assembled, derived, ingredients
from lightning_peft.methods.from_peft.updated import changes_bias, is_dora, updated
from lightning_peft.methods.from_peft.weight_merge import merge_in_weight, unmerge_in_weight
from lightning_peft.methods.in_weight.places import own_forward
from lightning_peft.methods.in_weight.reading import (
    alone,
    call_with,
    read_with_updates,
    read_without_updates,
)
from lightning_peft.methods.in_weight.values import own_value

__all__ = ["is_in_weight", "put_in_weight", "refuse_variant", "take_out_of_weight"]


def put_in_weight(layer: Any) -> None:
    """Move the update of a layer of ``peft`` into the weight.

    Args:
        layer: The layer; its class and that of its base layer become subclasses of what they were.
    """
    kind: Any = type(layer)
    layer.__class__ = _in_weight_class(kind)
    read_with_updates(layer.base_layer, ("weight", "bias"))


def refuse_variant(layer: Any, name: str) -> None:
    """Refuse a variant of LoRA that is no addition, on a layer with a forward of its own.

    Args:
        layer: The layer of ``peft``.
        name: Its name, for the error.

    Raises:
        MethodError: If it is one.
    """
    reason = own_forward(layer.base_layer)
    others = [v for n, v in getattr(layer, "lora_variant", {}).items() if not is_dora(layer, n)]
    if others and reason is not None:
        raise MethodError(
            f"{type(others[0]).__name__}: expected layers whose output is the product with their "
            f"weight, got {name} ({reason}). Exclude it, or use LoRA without this variant."
        )


def take_out_of_weight(layer: Any) -> nn.Module:
    """Return the base layer, as it was before :func:`put_in_weight`."""
    base: nn.Module = layer.base_layer
    read_without_updates(base)
    return base


def is_in_weight(layer: Any) -> bool:
    """Whether a layer of ``peft`` has its update in the weight."""
    return bool(getattr(type(layer), "in_weight", False))


def _read(layer: Any, name: str) -> Tensor | None:
    """Return a weight with its update, or the own one to a tuner that is computing it."""
    with alone():
        if layer._computing or (name == "bias" and not changes_bias(layer)):
            return own_value(layer.base_layer, name)
        return updated(layer)[name]


def _restore(tuner: Any, also: Any) -> nn.Module:
    made: nn.Module = object.__new__(_in_weight_class(assembled(tuner, also)))
    return made


@functools.cache
def _in_weight_class(kind: Any) -> type[nn.Module]:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.disable_adapters or self.merged_adapters:
            return self.base_layer(*args, **kwargs)
        return call_with(self.base_layer, updated(self), args, kwargs)

    own = {
        "in_weight": True,
        "_computing": False,
        "forward": forward,
        "merge": merge_in_weight,
        "unmerge": unmerge_in_weight,
        "weights": updated,
        "weight": property(functools.partial(_read, name="weight")),
        "bias": property(functools.partial(_read, name="bias")),
    }
    made: type[nn.Module] = derived((kind,), _restore, ingredients(kind), **own)
    return made
