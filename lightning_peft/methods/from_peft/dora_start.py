"""The initial magnitudes of DoRA, without computing a product that is zero.

``peft`` sets them to the row norms of ``W + s B A``. At the start ``B`` is zero, so these are the
norms of ``W``, bit for bit; the product and the sum are two matrices of the weight's size for each
layer, and take most of the time to adapt a large backbone.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["quick_dora_start", "start_in_float32"]

_PLACE = ("peft.tuners.lora.dora", "DoraLinearLayer", "update_layer")
_INJECTING = threading.RLock()  # a thread must not take another's replacement for the original


@contextmanager
def quick_dora_start() -> Iterator[None]:
    """Make ``peft`` start its DoRA layers from the norms of the weights themselves.

    This applies inside the context, to plain linear layers whose ``B`` is zero. Other layers, and
    versions of ``peft`` with other code, are not changed.
    """
    module, kind, name = _PLACE
    try:
        layer_class: Any = getattr(importlib.import_module(module), kind)
    except (ImportError, AttributeError):
        layer_class = None
    with _INJECTING:
        own = getattr(layer_class, "__dict__", {}).get(name)
        if own is None:
            yield
            return
        setattr(layer_class, name, _quick(layer_class, own))
        try:
            yield
        finally:
            setattr(layer_class, name, own)


def start_in_float32(model: nn.Module, adapter: str) -> None:
    """Start from float32 norms if the backbone is in half precision and ``A`` and ``B`` are not.

    ``peft`` takes the norms in the precision of the weight and casts them afterwards, but its
    forward divides by norms in float32: the first output would differ from the backbone's by
    the rounding of the norms.

    Args:
        model: The adapted backbone; changed in place.
        adapter: The name of the adapter.
    """
    from peft.tuners.lora import LoraLayer

    for layer in model.modules():
        if not isinstance(layer, LoraLayer) or adapter not in (layer.lora_magnitude_vector or ()):
            continue
        magnitude: Any = layer.lora_magnitude_vector[adapter]
        base = layer.get_base_layer()
        weight = getattr(base, "weight", None)  # HQQ has none, and computes in its own dtype
        if weight is None or weight.dtype not in (torch.float16, torch.bfloat16):
            continue
        if adapter in layer.lora_embedding_A:
            down, up = layer.lora_embedding_A[adapter], layer.lora_embedding_B[adapter]
        else:
            down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        scaling = layer.scaling[adapter]
        magnitude.update_layer(base_layer=base, lora_A=down, lora_B=up, scaling=scaling)


def _quick(layer_class: type, own: Callable[..., None]) -> Callable[..., None]:
    def update_layer(self: Any, *args: Any, **given: Any) -> None:
        plain = type(self) is layer_class and not args and not getattr(self, "fan_in_fan_out", True)
        if not (plain and _starts_at_weight(**given)):
            own(self, *args, **given)
            return
        weight = given["base_layer"].weight.detach()
        weight = weight.to(torch.promote_types(weight.dtype, given["lora_A"].dtype))
        # as in peft's get_weight_norm, so that the order of summation is the same too
        norms = torch.linalg.norm(weight, dim=1).to(weight.dtype)
        self.weight = nn.Parameter(norms, requires_grad=True)

    return update_layer


def _starts_at_weight(
    base_layer: Any = None,
    lora_A: Any = None,
    lora_B: Any = None,
    place_on_cpu: bool = False,
    **others: Any,
) -> bool:
    """Whether ``W + s B A`` equals ``W``, for a layer whose weight is an ordinary tensor."""
    if type(base_layer) is not nn.Linear or place_on_cpu or set(others) - {"scaling"}:
        return False
    tensors = (base_layer.weight, lora_A, lora_B)
    if not all(type(tensor) is nn.Parameter for tensor in tensors):
        return False
    if any(t.is_meta or t.device != base_layer.weight.device for t in tensors):
        return False
    if hasattr(base_layer.weight, "ds_id"):  # partitioned by DeepSpeed: peft gathers it first
        return False
    return base_layer.weight.is_contiguous() and not bool(lora_B.detach().any())
