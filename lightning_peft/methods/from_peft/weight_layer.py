"""The handle on one layer of ``peft`` whose update is in the weight."""

from __future__ import annotations

import torch
from torch import nn

from lightning_peft.methods.finite import lost, refuse_not_finite
from lightning_peft.methods.from_peft.in_weight import take_out_of_weight
from lightning_peft.methods.from_peft.layer import PeftLayer
from lightning_peft.methods.from_peft.weight_merge import merged_values, write_merged
from lightning_peft.methods.in_weight.part import Part, remove_part
from lightning_peft.methods.in_weight.reading import read_without_updates
from lightning_peft.methods.in_weight.values import parameters_of

__all__ = ["WeightLayer"]


class WeightLayer(PeftLayer):
    """A handle on a layer whose weight is read with its update; merging writes what is read.

    Args:
        model: The adapted backbone.
        name: The name of the adapted module, or of a part of one.
    """

    @property
    def owner(self) -> nn.Module:
        """See :class:`Adapter`; of a part, the module that holds the parameter."""
        base = self.layer.base_layer
        return base.holder if isinstance(base, Part) else super().owner

    @torch.no_grad()
    def written(self) -> list[nn.Parameter]:
        """See :class:`Adapter`."""
        base = self.layer.base_layer
        return [p for name in merged_values(self.layer)[1] for p in parameters_of(base, name)]

    @torch.no_grad()
    def merge(self) -> float:
        """See :class:`Adapter`; what was there is kept, so that unmerging is exact."""
        layer = self.layer
        values, changed = merged_values(layer)
        refuse_not_finite(changed, f"the merged weights of {self.name}")
        write_merged(layer, changed)
        return max((lost(values[name], changed[name]) for name in changed), default=0.0)

    def unload(self) -> None:
        """See :class:`Adapter`."""
        layer = self.layer
        super().unload()
        base = take_out_of_weight(layer)
        if isinstance(base, Part) and not remove_part(base):
            read_without_updates(base.holder)
