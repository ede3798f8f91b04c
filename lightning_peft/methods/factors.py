"""Finding the second factors of low-rank updates, which start at zero."""

from __future__ import annotations

import sys

from torch import nn

from lightning_peft.methods.lora_qv import SliceUpdate

__all__ = ["second_factors"]


def second_factors(model: nn.Module) -> set[str]:
    """Return the names of the factor ``B`` of all low-rank updates ``B A``, of ``peft`` and ours.

    Args:
        model: A model, adapted or not.
    """
    layers = sys.modules.get("peft.tuners.lora.layer")  # no such layer exists before
    names: set[str] = set()
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(module, SliceUpdate):
            names.add(f"{prefix}b")
        elif layers is not None and isinstance(module, layers.LoraLayer):
            for key in ("lora_B", "lora_embedding_B"):
                held = getattr(module, key).named_parameters()
                names |= {f"{prefix}{key}.{name}" for name, _ in held}
    return names
