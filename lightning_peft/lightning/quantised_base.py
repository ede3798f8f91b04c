"""The codes of quantised bases in checkpoints: they stay those of the module.

bitsandbytes writes the scales of its codes into a state dict and does not read them back: codes
without their scales mean nothing, so neither is loaded. A checkpoint that holds other ones is of
another base.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_peft.anatomy.quantised import is_code, quantised_layers, state_beside
from lightning_peft.errors import some
from lightning_peft.lightning.class_names import is_a

__all__ = [
    "allow_ignored_layers",
    "asked_for",
    "codes_of_bases",
    "other_codes",
    "plain_layers",
    "quantise_first",
]


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


def asked_for(pl_module: nn.Module) -> set[str]:
    """Return the names of what a strict loading of a module asks for, among them of its codes."""
    found = {name for name, _ in pl_module.named_parameters(remove_duplicate=False)}
    roots = tuple(
        f"{n}." if n else "" for n, _, scheme in quantised_layers(pl_module) if scheme.reads
    )
    if roots:
        found |= {name for name in pl_module.state_dict() if name.startswith(roots)}
    return found


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


@contextmanager
def plain_layers() -> Iterator[None]:
    """Let the layers of ``torch.nn`` be torch's own inside the context.

    A precision plugin of Lightning puts its own classes there while ``configure_model`` runs, and
    an adapter that is made then would be made of them.
    """
    swapped = {
        name: getattr(nn, name)
        for name in torch.nn.modules.__all__
        if getattr(nn, name) is not getattr(torch.nn.modules, name)
    }
    for name in swapped:
        setattr(nn, name, getattr(torch.nn.modules, name))
    try:
        yield
    finally:
        for name, kind in swapped.items():
            setattr(nn, name, kind)


def allow_ignored_layers(pl_module: nn.Module, strategy: Any) -> None:
    """Let ``BitsandbytesPrecision(ignore_modules=...)`` serve a module that is built in its init.

    Lightning refuses it wherever ``configure_model`` is overridden, since layers that are built
    there cannot be ignored; here it is only the place where the adapter comes in.

    Args:
        pl_module: The module, before ``configure_model`` runs.
        strategy: The trainer's strategy, or ``None``.
    """
    plugin: Any = getattr(strategy, "precision_plugin", None)
    own = getattr(type(pl_module), "configure_model", None).__module__.partition(".")[0]
    if own in ("lightning", "pytorch_lightning", "lightning_peft") and is_a(
        plugin, "BitsandbytesPrecision"
    ):
        plugin.module_init_context = plugin.tensor_init_context


def quantise_first(pl_module: nn.Module, strategy: Any) -> None:
    """Let Lightning's ``BitsandbytesPrecision`` quantise a module before it is adapted.

    By itself it does so afterwards, and would put quantised layers in the place of adapted ones and
    of the adapter's own.

    Args:
        pl_module: The module, not adapted.
        strategy: The trainer's strategy, or ``None``.
    """
    plugin: Any = getattr(strategy, "precision_plugin", None)
    if not is_a(plugin, "BitsandbytesPrecision"):
        return
    plugin.convert_module(pl_module)
    for module in pl_module.modules():
        weight = module._parameters.get("weight")
        if weight is None or type(weight).__name__ not in ("Params4bit", "Int8Params"):
            continue
        if weight.is_floating_point() and not weight.is_meta:
            module.to(strategy.root_device)  # which makes the codes
