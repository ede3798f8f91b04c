"""Merging a layer of ``peft`` whose update is in the weight.

``peft``'s own merge writes to ``base_layer.weight``, which may be computed: the value would be
lost, and the layer would say that it is merged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_peft.errors import MethodError
from lightning_peft.methods.finite import refuse_not_finite
from lightning_peft.methods.from_peft.updated import updated
from lightning_peft.methods.in_weight.values import own_value, restore, write_all

__all__ = ["merge_in_weight", "merged_values", "unmerge_in_weight", "write_merged"]

_KEPT = "_lightning_peft_before_merge"


@torch.no_grad()
def merge_in_weight(
    layer: Any, safe_merge: bool = False, adapter_names: Sequence[str] | None = None
) -> None:
    """Write what the forward reads; the weights that were there are kept, so unmerging is exact.

    It takes the place of ``merge`` of ``peft``, with its arguments.

    Args:
        layer: The layer.
        safe_merge: Not read: values that are not finite are always refused.
        adapter_names: The adapters to merge: all active ones, which is the default.

    Raises:
        MethodError: If other adapters are named; nothing is changed then.
        ValueError: If a merged weight is not finite, or the base layer cannot hold it.
    """
    active = [name for name in layer.active_adapters if name in layer._get_available_adapters()]
    if layer.merged_adapters or not active:
        return
    if adapter_names is not None and set(adapter_names) & set(active) != set(active):
        raise MethodError(
            f"merge(): expected all active adapters where the update is in the weight "
            f"({', '.join(active)}), got {', '.join(adapter_names) or 'none'}. Leave "
            "adapter_names out, or activate these alone."
        )
    _, changed = merged_values(layer)
    refuse_not_finite(changed, "the merged weights")
    write_merged(layer, changed)


@torch.no_grad()
def write_merged(layer: Any, changed: Mapping[str, Tensor]) -> None:
    """Write the weights of :func:`merged_values`.

    Args:
        layer: The layer.
        changed: The weights as they will be stored, by name.

    Raises:
        ValueError: If the base layer cannot hold one; nothing is changed then.
    """
    layer.__dict__[_KEPT] = write_all(layer.base_layer, changed)
    layer.merged_adapters = list(layer.active_adapters)


@torch.no_grad()
def unmerge_in_weight(layer: Any) -> None:
    """Bring back the weights that :func:`merge_in_weight` replaced.

    Args:
        layer: The layer.
    """
    restore(layer.base_layer, layer.__dict__.pop(_KEPT, {}))
    layer.merged_adapters = []


@torch.no_grad()
def merged_values(layer: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights that a merge changes, as computed and as they would be stored.

    Args:
        layer: The layer.
    """
    base = layer.base_layer
    weight = own_value(base, "weight")
    assert weight is not None
    values: dict[str, Tensor] = {}
    stored: dict[str, Tensor] = {}
    exact = torch.promote_types(weight.dtype, torch.float32)
    for name, value in updated(layer, exact).items():
        own = own_value(base, name)
        if value is None or own is None or torch.equal(value.to(own.dtype), own):
            continue
        values[name], stored[name] = value, value.to(own.dtype)
    return values, stored
