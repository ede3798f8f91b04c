"""The handle on one layer that ``peft`` put into a backbone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from lightning_peft.anatomy.quantised import is_code, scheme_of
from lightning_peft.methods.codes import code_names, probe, refuse_codes
from lightning_peft.methods.finite import lost, refuse_not_finite
from lightning_peft.methods.from_peft.parameters import wrapper_of
from lightning_peft.methods.from_peft.start import kept_weight
from lightning_peft.methods.in_weight.part import layer_at
from lightning_peft.methods.merging_codes import (
    Restorer,
    become_dense,
    linear_function_of,
    measured,
    write_codes,
)

__all__ = ["FURTHER_NAMES", "ParameterLayer", "PeftLayer", "further_names", "put_under"]

FURTHER_NAMES = "_lightning_peft_further_names"
"""The attribute of a layer with its names in the model besides the first, if it has several."""


class PeftLayer:
    """A handle on one ``peft`` layer by its place in the model, so a deep copy has its own.

    Args:
        model: The adapted backbone.
        name: The name of the adapted module.
    """

    _restore: Restorer | None = None

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

    @property
    def owner(self) -> nn.Module:
        """See :class:`Adapter`."""
        return self.model.get_submodule(self.name)

    @torch.no_grad()
    def written(self) -> list[nn.Parameter]:
        """See :class:`Adapter`; ``peft`` merges a copy of the layer to find out."""
        base = self.layer.get_base_layer()
        if scheme_of(base) is not None:
            return list(base.parameters())
        twin = copy.deepcopy(self.layer)
        twin.merge()
        merged = dict(twin.get_base_layer().named_parameters())
        return [
            parameter
            for key, parameter in self.layer.get_base_layer().named_parameters()
            if key not in merged or not torch.equal(parameter, merged[key])
        ]

    def merge(self) -> float:
        """See :class:`Adapter`."""
        base = self.layer.get_base_layer()
        if any(True for _ in code_names(base)):
            return self._merge_into_codes(base)
        return self._merge_into_numbers(base)

    def _merge_into_numbers(self, base: nn.Module) -> float:
        layer = self.layer
        own = self._merged_keys(base)
        half = {
            key: parameter.dtype
            for key, parameter in base.named_parameters(recurse=False)
            if key in (own or base._parameters)
            and parameter.dtype in (torch.float16, torch.bfloat16)
        }
        if not own:
            _cast(base, dict.fromkeys(half, torch.float32))
            try:
                # peft's own check for NaN runs on a copy, before the weight is touched
                layer.merge(safe_merge=True)
            finally:
                difference = _cast(base, half)
            return difference

        before = {key: base.get_parameter(key).data for key in own}
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

    @torch.no_grad()
    def merge_dequantised(self, dtype: torch.dtype) -> float:
        """Merge into a base that is made dense; one of numbers is merged into as it is.

        Args:
            dtype: The dtype of the dense layer.

        Returns:
            As from :meth:`merge`.
        """
        layer, base = self.layer, self.layer.get_base_layer()
        scheme = scheme_of(base)
        if scheme is None:
            return self.merge()
        restore = Restorer(base)
        values = linear_function_of(layer, base, scheme, self.name)
        difference = become_dense(base, values, dtype)
        layer.merged_adapters.extend(layer.active_adapters)
        self._restore = restore
        return difference

    def _merge_into_codes(self, base: nn.Module) -> float:
        """Merge by the base's own quantiser; return the difference of the layer's outputs."""
        layer, scheme = self.layer, scheme_of(base)
        what = f"{type(base).__name__} in {self.name}"
        base.state_dict()  # bitsandbytes undoes here the packing for inference, which peft misreads
        restore = Restorer(base)

        def fold() -> None:
            if scheme is None:
                layer.merge(safe_merge=True)
                return
            write_codes(base, scheme, linear_function_of(layer, base, scheme, self.name))
            layer.merged_adapters.extend(layer.active_adapters)

        try:
            difference = measured(layer, base, lambda: probe(base, base), fold, what)
        except BaseException:
            restore()
            layer.merged_adapters.clear()
            raise
        if not layer.merged_adapters:  # without an effect
            layer.merged_adapters.extend(layer.active_adapters)
        self._restore = restore
        return difference

    def _merged_keys(self, base: nn.Module) -> tuple[str, ...]:
        """Return the parameters to copy before a merge; none if ``peft`` has to guard them."""
        if base._modules:
            return ()
        return tuple(key for key, p in base._parameters.items() if p is not None)

    def unmerge(self) -> None:
        """See :class:`Adapter`."""
        if self._restore is None:
            self.layer.unmerge()
            return
        # codes of W + dW - dW are not those of W
        self._restore()
        self.layer.merged_adapters.clear()
        self._restore = None

    def unload(self) -> None:
        """See :class:`Adapter`."""
        layer = self.layer
        base = layer.get_base_layer()
        kept = kept_weight(layer)
        if kept is not None and not layer.merged:
            kept.put(base, shown=True)
        for name in (self.name, *layer.__dict__.get(FURTHER_NAMES, ())):
            parent, _, key = name.rpartition(".")
            self.model.get_submodule(parent)._modules[key] = base


def further_names(model: nn.Module, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Find the modules that have another name in a model too (``self.k = self.q``).

    Args:
        model: The model.
        names: The first names of modules.

    Returns:
        The further names of a module, by its first; modules with one name are left out.
    """
    found: dict[str, list[str]] = {}
    first = {id(layer_at(model, name)): name for name in names}
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


class ParameterLayer(PeftLayer):
    """A handle on the ``peft`` layer of one parameter (``target_parameters``).

    The layers of several parameters of a module lie around each other, in any order.

    Args:
        model: The adapted backbone.
        name: The name of the module that holds the parameter.
        parameter: The parameter's name in it.
    """

    def __init__(self, model: nn.Module, name: str, parameter: str) -> None:
        super().__init__(model, name)
        self.parameter = parameter

    @property
    def layer(self) -> Any:
        """The ``peft`` layer (a ``ParamWrapper``)."""
        return wrapper_of(self.model, self.name, self.parameter)

    def _merge_into_codes(self, base: nn.Module) -> float:
        if is_code(base.get_parameter(self.parameter)):
            refuse_codes(base, self.name)
        return self._merge_into_numbers(base)

    def _merged_keys(self, base: nn.Module) -> tuple[str, ...]:
        return (self.parameter,)

    def unload(self) -> None:
        """See :class:`Adapter`; the layers of the module's other parameters stay."""
        layer = self.layer
        parent, _, key = self.name.rpartition(".")
        holder: Any = self.model.get_submodule(parent)
        while holder._modules[key] is not layer:
            holder, key = holder._modules[key], "base_layer"
        holder._modules[key] = layer.base_layer


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
