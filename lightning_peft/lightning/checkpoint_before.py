"""Checkpoints from before a module was adapted: the names and the weights of its backbone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_peft.adaptation.handle import Adaptation
from lightning_peft.anatomy.names import bare_name
from lightning_peft.errors import CheckpointError, some
from lightning_peft.lightning.further_names import join
from lightning_peft.methods.from_peft.start import kept_weights

__all__ = ["renamed", "with_rewritten"]


def renamed(
    state: Mapping[str, Tensor],
    adaptations: Mapping[str, Adaptation],
    further: Mapping[str, str],
) -> dict[str, Tensor]:
    """Return the entries of a checkpoint from before the adaptation, by their present names."""
    names = {
        join(path, before): join(path, now)
        for path, adaptation in adaptations.items()
        for before, now in adaptation.base_names.items()
    }
    names = {bare_name(name): name for name in further} | names
    return {names.get(name, name): tensor for name, tensor in state.items()}


def with_rewritten(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], adaptations: Mapping[str, Adaptation]
) -> dict[str, Tensor]:
    """Replace original weights by those that the adapter's initialisation made of them.

    Raises:
        CheckpointError: If they are not the weights that it was computed from.
    """
    kept = {
        join(path, name): weight
        for path, adaptation in adaptations.items()
        for name, weight in kept_weights(adaptation.model).items()
    }
    found = [name for name in kept if name in state]
    other = [name for name in found if not torch.equal(state[name].to(kept[name]), kept[name])]
    if other:
        raise CheckpointError(
            "the checkpoint is from before the adaptation and holds other weights than those that "
            f"the adapter's initial values were computed from, in {some(other)}: expected "
            "the same. Load it into the module before adapting it."
        )
    return {**state, **{name: own[name] for name in found}}
