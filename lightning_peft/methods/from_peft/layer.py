"""The handle on one layer that ``peft`` put into a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from lightning_peft.methods.finite import refuse_not_finite
from lightning_peft.methods.from_peft.start import kept_weight

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
        self.layer.unmerge()

    def unload(self) -> None:
        """See :class:`Adapter`."""
        layer = self.layer
        kept = kept_weight(layer)
        if kept is not None and not layer.merged:
            kept.put(layer.get_base_layer(), shown=True)
        for name in (self.name, *layer.__dict__.get(FURTHER_NAMES, ())):
            parent, _, key = name.rpartition(".")
            self.model.get_submodule(parent)._modules[key] = layer.get_base_layer()


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
        if before.numel():
            lost = (parameter.data.to(before.dtype) - before).abs().max()
            worst = max(worst, float(lost / before.abs().max().clamp_min(1e-30)))
    return worst
