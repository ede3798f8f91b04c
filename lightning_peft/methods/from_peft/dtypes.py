"""The dtypes of ``peft``'s layers when a model is cast after they were put into it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

__all__ = ["copies_of_layers", "follow_base"]


def copies_of_layers(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yield the layers that ``peft`` copied to train the copy, each with the backbone's own.

    LN tuning copies norms. The forward of a copy is that of the norm, which casts nothing: its
    output is of the dtype of its parameters, so that they have to be the backbone's, or the inputs
    and outputs have to be cast around it.

    Args:
        model: The adapted model.
    """
    layers: Any = sys.modules.get("peft.tuners.ln_tuning.layer")
    for module in model.modules() if layers is not None else ():
        if isinstance(module, layers.LNTuningLayer):
            for copied in module.ln_tuning_layers.values():
                yield copied, module.get_base_layer()


def follow_base(model: nn.Module) -> None:
    """Bring up to date what ``peft``'s layers remember of the dtype of their base.

    AdaMSS casts its input to the dtype that its base had when it was adapted.

    Args:
        model: The adapted model, just cast.
    """
    layers: Any = sys.modules.get("peft.tuners.adamss.layer")
    for module in model.modules() if layers is not None else ():
        if isinstance(module, layers.AdamssLayer):
            dtype = module.get_base_layer().weight.dtype
            if isinstance(module.__dict__.get("dtype"), torch.dtype) and dtype.is_floating_point:
                module.dtype = dtype
