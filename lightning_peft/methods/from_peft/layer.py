"""The handle on one layer that ``peft`` put into a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_peft.methods.finite import lost, refuse_not_finite
from lightning_peft.methods.from_peft.in_weight import is_in_weight, take_out_of_weight, updated
from lightning_peft.methods.from_peft.start import kept_weight
from lightning_peft.methods.in_weight.part import Part, remove_part
from lightning_peft.methods.in_weight.reading import read_without_updates
from lightning_peft.methods.in_weight.values import own_value, restore, write

__all__ = ["FURTHER_NAMES", "PeftLayer", "further_names", "put_under"]

FURTHER_NAMES = "_lightning_peft_further_names"
"""The attribute of a layer with its names in the model besides the first, if it has several."""


class PeftLayer:
    """A handle on one ``peft`` layer by its place in the model, so a deep copy has its own.

    Args:
        model: The adapted backbone.
        name: The name of the adapted module.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        self.model = model
        self.name = name
        self._kept: dict[str, Tensor] = {}

    @property
    def layer(self) -> Any:
        """The ``peft`` layer (a ``BaseTunerLayer``)."""
        return self.model.get_submodule(self.name)

    @property
    def enabled(self) -> bool:
        """See :class:`Adapter`."""
        return not self.layer.disable_adapters

    def set_enabled(self, enabled: bool) -> None:
        """See :class:`Adapter`."""
        layer = self.layer
        flags = [(p, p.requires_grad) for p in layer.parameters()]
        layer.enable_adapters(enabled)  # peft ties requires_grad to it
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        kept = kept_weight(layer)
        if kept is not None:
            kept.put(layer.get_base_layer(), shown=not enabled)

    def merge(self) -> float:
        """See :class:`Adapter`."""
        layer = self.layer
        if is_in_weight(layer):
            return self._write_weight(layer)
        base = layer.get_base_layer()
        half = {
            key: parameter.dtype
            for key, parameter in base.named_parameters(recurse=False)
            if parameter.dtype in (torch.float16, torch.bfloat16)
        }
        if base._modules or not all(p.is_floating_point() for p in base.parameters()):
            _cast(base, dict.fromkeys(half, torch.float32))
            try:
                # peft's own check for NaN runs on a copy, before the weight is touched
                layer.merge(safe_merge=True)
            finally:
                difference = _cast(base, half)
            return difference

        before = {key: p.data for key, p in base._parameters.items() if p is not None}
        for key, value in before.items():
            base.get_parameter(key).data = value.clone() if key not in half else value.float()
        try:
            # adding s B A in place and checking the sum takes half of the time of peft's safe merge
            layer.merge(safe_merge=not _is_plain_lora(layer))
            difference = _cast(base, half)
            merged = {f"{self.name}.{key}": base.get_parameter(key).data for key in before}
            refuse_not_finite(merged, "the merged weights")
        except BaseException:
            layer.merged_adapters.clear()
            for key, value in before.items():
                base.get_parameter(key).data = value
            raise
        return difference

    def unmerge(self) -> None:
        """See :class:`Adapter`."""
        layer = self.layer
        if not is_in_weight(layer):
            layer.unmerge()
            return
        restore(layer.base_layer, self._kept)
        self._kept = {}
        layer.merged_adapters = []

    def unload(self) -> None:
        """See :class:`Adapter`."""
        layer = self.layer
        base = layer.get_base_layer()
        kept = kept_weight(layer)
        if kept is not None and not layer.merged:
            kept.put(base, shown=True)
        if is_in_weight(layer):
            base = take_out_of_weight(layer)
        if isinstance(base, Part):
            if not remove_part(base):
                read_without_updates(base.holder)
            return
        for name in (self.name, *layer.__dict__.get(FURTHER_NAMES, ())):
            parent, _, key = name.rpartition(".")
            self.model.get_submodule(parent)._modules[key] = base

    @torch.no_grad()
    def _write_weight(self, layer: Any) -> float:
        """Write the weight that the forward reads into the base layer's own."""
        base = layer.base_layer
        own = {name: own_value(base, name) for name in ("weight", "bias")}
        weight = own["weight"]
        assert weight is not None
        exact = torch.promote_types(weight.dtype, torch.float32)
        before = {name: value for name, value in own.items() if value is not None}
        new = updated(layer, exact)
        values = {name: v for name in before if (v := new[name]) is not None}
        rounded = {name: v.to(before[name].dtype) for name, v in values.items()}
        refuse_not_finite(rounded, f"the merged weights of {self.name}")
        changed = {n: v for n, v in rounded.items() if not torch.equal(v, before[n])}
        kept: dict[str, Tensor] = {}
        try:
            for name, value in changed.items():
                kept |= write(base, name, value.contiguous())
        except ValueError:
            restore(base, kept)
            raise
        self._kept = kept
        layer.merged_adapters = list(layer.active_adapters)
        return max((lost(values[name], rounded[name]) for name in changed), default=0.0)


def further_names(model: nn.Module, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Find the modules that have another name in a model too (``self.k = self.q``).

    Args:
        model: The model.
        names: The first names of modules.

    Returns:
        The further names of a module, by its first; modules with one name are left out.
    """
    found: dict[str, list[str]] = {}
    first = {id(model.get_submodule(name)): name for name in names}
    for name, module in model.named_modules(remove_duplicate=False):
        if first.get(id(module), name) != name:
            found.setdefault(first[id(module)], []).append(name)
    return {name: tuple(others) for name, others in found.items()}


def put_under(model: nn.Module, name: str, others: tuple[str, ...]) -> None:
    """Put a layer that replaced a module under the module's further names as well.

    ``peft`` replaces it under its first name only: the others would keep the plain layer, and see
    an update of the first as soon as it is merged into the weight that they share.

    Args:
        model: The adapted model; changed in place.
        name: The first name.
        others: The further names.
    """
    layer = model.get_submodule(name)
    left = tuple(other for other in others if model.get_submodule(other) is not layer)
    for other in left:
        parent, _, key = other.rpartition(".")
        model.get_submodule(parent)._modules[key] = layer
    if left:
        layer.__dict__[FURTHER_NAMES] = left


def _is_plain_lora(layer: Any) -> bool:
    """Whether ``peft`` adds ``s B A`` in place."""
    from peft.tuners.lora import LoraLayer

    return isinstance(layer, LoraLayer) and not getattr(layer, "lora_variant", True)


def _cast(module: nn.Module, dtypes: dict[str, torch.dtype]) -> float:
    """Cast a module's own parameters; return the largest loss, relative to the largest value."""
    worst = 0.0
    for key, dtype in dtypes.items():
        parameter = module._parameters[key]
        assert parameter is not None
        before = parameter.data
        parameter.data = before.to(dtype)
        worst = max(worst, lost(before, parameter.data))
    return worst
