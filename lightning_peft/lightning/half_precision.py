"""What a trainer in half precision does to the trained parameters that stay in half precision.

The adapter, the head and norms that are trained are float32, whatever the trainer's precision is
(:mod:`lightning_peft.adaptation.precision`). A bias beside a frozen weight, and the blocks of a
method that trains the bulk of the backbone, have the backbone's dtype.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from lightning_peft.adaptation.handle import find_adaptations
from lightning_peft.adaptation.precision import in_half_precision
from lightning_peft.anatomy.names import parameter_at
from lightning_peft.errors import MethodError
from lightning_peft.lightning.class_names import is_a
from lightning_peft.lightning.namespace import pl, pl_import

__all__ = ["check_half_precision", "refuse_replaced_layers"]


def refuse_replaced_layers(pl_module: nn.Module, strategy: Any) -> None:
    """Refuse a precision plugin that replaces layers after they were adapted.

    Args:
        pl_module: The module, before it is adapted.
        strategy: The trainer's strategy, or ``None``.

    Raises:
        MethodError: If Transformer Engine's layers would take the place of adapted ones.
    """
    plugin: Any = getattr(strategy, "precision_plugin", None)
    if not is_a(plugin, "TransformerEnginePrecision") or plugin.replace_layers is False:
        return
    if any("transformer_engine.pytorch" in module.__module__ for module in pl_module.modules()):
        return  # then the plugin replaces none
    raise MethodError(
        "precision: expected TransformerEnginePrecision with replace_layers=False, got "
        f"replace_layers={plugin.replace_layers}: it would put new layers in the place of adapted "
        "ones, without the adapter. Pass plugins=TransformerEnginePrecision(weights_dtype="
        "torch.bfloat16, replace_layers=False), or precision='bf16-true'."
    )


def check_half_precision(trainer: pl.Trainer, pl_module: nn.Module) -> None:
    """Refuse what divides zero by zero in float16, and say what hardly moves in bfloat16.

    Args:
        trainer: The trainer, whose optimizers exist.
        pl_module: The adapted module, as the trainer has cast it.

    Raises:
        MethodError: If an optimizer adds a number to its denominators that float16 cannot hold.
    """
    adaptations = find_adaptations(pl_module)
    if not adaptations:
        return
    names = {id(p): name for name, p in pl_module.named_parameters()}
    lost = [
        (names.get(id(parameter), "a parameter"), group["eps"])
        for optimizer in trainer.optimizers
        for group in optimizer.param_groups
        if isinstance(group.get("eps"), float) and not torch.tensor(group["eps"]).half()
        for parameter in group["params"]
        if parameter.dtype == torch.float16
    ]
    if lost:
        raise MethodError(
            f"float16: expected an optimizer whose eps float16 can hold (from 6e-8), got "
            f"{lost[0][1]} for {_some(name for name, _ in lost)}: where a gradient is small, a "
            "step would divide 0 by 0. Use precision='16-mixed' or 'bf16-mixed', or eps=1e-4."
        )
    half = [
        f"{path}.{name}" if path else name
        for path, adaptation in adaptations.items()
        if adaptation.adapter_dtype is None
        for name in adaptation.trained_names()
        if in_half_precision(parameter_at(adaptation.model, name).dtype)
    ]
    if half:
        pl_import("utilities.rank_zero").rank_zero_warn(
            f"These parameters are trained in half precision, in which a step below 1/512 of a "
            f"value (1/4096 in float16) is lost: {_some(half)}. With precision='bf16-mixed' they "
            "are float32."
        )


def _some(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - 4} more" if len(every) > 4 else ""
    return f"{', '.join(every[:4])}{more}"
