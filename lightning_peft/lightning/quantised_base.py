"""The codes of quantised bases in checkpoints: they stay those of the module.

bitsandbytes writes the scales of its codes into a state dict and does not read them back: codes
without their scales mean nothing, so neither is loaded. A checkpoint that holds other ones is of
another base.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from lightning_peft.anatomy.quantised import is_code, quantised_layers, state_beside
from lightning_peft.errors import some

__all__ = ["base_parameters", "codes_of_bases", "other_codes"]


def codes_of_bases(pl_module: nn.Module) -> set[str]:
    """Return the names, in the state of a module, of codes and of what belongs to them.

    Args:
        pl_module: The module.
    """
    found = state_beside(pl_module)
    for name, layer, _ in quantised_layers(pl_module):
        own = layer.named_parameters(recurse=False)
        found |= {f"{name}.{key}" if name else key for key, p in own if is_code(p)}
    return found


def base_parameters(pl_module: nn.Module) -> set[str]:
    """Return the names of all parameters of a module, which a strict loading asks for."""
    return {name for name, _ in pl_module.named_parameters(remove_duplicate=False)}


def other_codes(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], codes: Collection[str]
) -> list[str]:
    """Return what is wrong with the codes that a checkpoint holds, if it holds any.

    Args:
        state: The state in the checkpoint, under the module's names.
        own: The module's own.
        codes: The result of :func:`codes_of_bases`.
    """
    wrong = [
        name
        for name, tensor in state.items()
        if name in codes and name in own and not _same(tensor, own[name])
    ]
    if not wrong:
        return []
    return [
        f"{len(wrong)} codes of another quantised base: {some(sorted(wrong), 4)}. Build the module "
        "with the base that it was trained on"
    ]


def _same(left: Tensor, right: Tensor) -> bool:
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    if is_code(left) and left.is_floating_point():  # a tensor of torchao
        return type(left) is type(right) and torch.equal(left.dequantize(), right.dequantize())
    return torch.equal(left.to(right.device), right)
