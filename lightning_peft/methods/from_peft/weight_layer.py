"""The handle on one layer of ``peft`` whose update is in the weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_peft.methods.finite import lost, refuse_not_finite
from lightning_peft.methods.from_peft.in_weight import take_out_of_weight, updated
from lightning_peft.methods.from_peft.layer import PeftLayer
from lightning_peft.methods.in_weight.part import Part, remove_part
from lightning_peft.methods.in_weight.reading import read_without_updates
from lightning_peft.methods.in_weight.values import own_value, parameters_of, restore, write

__all__ = ["WeightLayer"]


class WeightLayer(PeftLayer):
    """A handle on a layer whose weight is read with its update; merging writes what is read.

    Args:
        model: The adapted backbone.
        name: The name of the adapted module, or of a part of one.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__(model, name)
        self._kept: dict[str, Tensor] = {}

    @property
    def owner(self) -> nn.Module:
        """See :class:`Adapter`; of a part, the module that holds the parameter."""
        base = self.layer.base_layer
        return base.holder if isinstance(base, Part) else super().owner

    @torch.no_grad()
    def written(self) -> list[nn.Parameter]:
        """See :class:`Adapter`."""
        base = self.layer.base_layer
        return [p for name in self._changed()[1] for p in parameters_of(base, name)]

    @torch.no_grad()
    def merge(self) -> float:
        """See :class:`Adapter`; what was there is kept, so that unmerging is exact."""
        layer = self.layer
        values, changed = self._changed()
        refuse_not_finite(changed, f"the merged weights of {self.name}")
        kept: dict[str, Tensor] = {}
        try:
            for name, value in changed.items():
                kept |= write(layer.base_layer, name, value.contiguous())
        except ValueError:
            restore(layer.base_layer, kept)
            raise
        self._kept = kept
        layer.merged_adapters = list(layer.active_adapters)
        return max((lost(values[name], changed[name]) for name in changed), default=0.0)

    def unmerge(self) -> None:
        """See :class:`Adapter`."""
        layer = self.layer
        restore(layer.base_layer, self._kept)
        self._kept = {}
        layer.merged_adapters = []

    def unload(self) -> None:
        """See :class:`Adapter`."""
        layer = self.layer
        super().unload()
        base = take_out_of_weight(layer)
        if isinstance(base, Part) and not remove_part(base):
            read_without_updates(base.holder)

    def _changed(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the weights that a merge changes, as computed and as they would be stored."""
        base = self.layer.base_layer
        weight = own_value(base, "weight")
        assert weight is not None
        values: dict[str, Tensor] = {}
        stored: dict[str, Tensor] = {}
        exact = torch.promote_types(weight.dtype, torch.float32)
        for name, value in updated(self.layer, exact).items():
            own = own_value(base, name)
            if value is None or own is None or torch.equal(value.to(own.dtype), own):
                continue
            values[name], stored[name] = value, value.to(own.dtype)
        return values, stored
