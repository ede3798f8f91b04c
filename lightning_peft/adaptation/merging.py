"""Folding adapters into the weights that they adapt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_peft.adaptation.modes import release
from lightning_peft.adaptation.precision import let_go
from lightning_peft.adaptation.shared_weights import refuse_shared
from lightning_peft.anatomy.fast_path import fast_path_on
from lightning_peft.anatomy.forward import output_of
from lightning_peft.anatomy.quantised import quantised_layers
from lightning_peft.errors import MethodError
from lightning_peft.methods.base import Adapter
from lightning_peft.methods.finite import refuse_not_finite

__all__ = ["MergeReport", "merge_adapters", "unload_adapters"]


@dataclass(frozen=True)
class MergeReport:
    """How exactly an adapter was merged.

    Attributes:
        sites: How many adapters were folded into weights.
        weight_difference: The largest change that rounding to the weights' dtype made, relative to
            the largest weight of its layer; 0 in float32. Where a weight is held as codes, the
            largest change of its layer's outputs for random inputs, relative to the largest.
        output_difference: The largest difference between the outputs before and after, relative to
            the largest output; ``None`` without example inputs.
    """

    sites: int
    weight_difference: float
    output_difference: float | None = None


def merge_adapters(
    model: nn.Module,
    adapters: Sequence[Adapter],
    method: str,
    state: Mapping[str, Tensor],
    example_inputs: Any = None,
    dequantised: torch.dtype | None = None,
) -> MergeReport:
    """Merge adapters, all of them or none.

    Args:
        model: The adapted backbone.
        adapters: The handles on its adapters.
        method: The method's name, for the error.
        state: The adapters' own tensors, by name; all of them have to be finite.
        example_inputs: Inputs on which to measure how much merging changes the output.
        dequantised: The dtype of dense layers that take the place of quantised ones; ``None`` keeps
            these.

    Returns:
        How exactly it was done.

    Raises:
        MethodError: If an adapter cannot be merged; nothing is changed then.
    """
    before = None if example_inputs is None else output_of(model, example_inputs)
    worst = 0.0
    done: list[Adapter] = []
    try:
        refuse_not_finite(state, "the adapter")
        refuse_shared(model, adapters)
        for adapter in adapters:
            densely = None if dequantised is None else getattr(adapter, "merge_dequantised", None)
            worst = max(worst, adapter.merge() if densely is None else densely(dequantised))
            done.append(adapter)
    except (NotImplementedError, ValueError, AttributeError, RuntimeError, TypeError) as error:
        for adapter in reversed(done):  # two may have written into one weight
            adapter.unmerge()
        reason = str(error) or "its adapter is not a linear change of a weight"
        raise MethodError(f"'{method}' cannot be merged: {reason}") from error
    difference = None
    if before is not None:
        after = output_of(model, example_inputs)
        difference = float((after - before).abs().max() / before.abs().max().clamp_min(1e-30))
    return MergeReport(len(done), worst, difference)


def unload_adapters(
    model: nn.Module, adapters: Sequence[Adapter], fast_path: Sequence[nn.Module]
) -> None:
    """Remove adapters, and what held the modes, the dtypes and the layers' own fast path.

    Args:
        model: The adapted backbone; its weights stay as they are.
        adapters: The handles on its adapters.
        fast_path: Layers whose inference fast path is off.
    """
    fast_path_on(fast_path)
    let_go(model)
    for _, layer, scheme in quantised_layers(model):
        scheme.release(layer)
    for adapter in adapters:
        adapter.unload()
    release(model.modules())
