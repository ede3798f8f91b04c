"""A ``PeftModel``: the model of ``peft``'s own wrapper, with its adapters and its base told apart.

The wrapper may stand around layers (LoRA), around copies of whole modules (``modules_to_save``) or
around the inputs only (prompt, prefix and p-tuning). What is the base is decided by place: what a
layer of ``peft`` stands around, and everything outside of such layers. The rest is adapters.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import chain
from typing import Any

from torch import Tensor, nn

__all__ = [
    "WRAPPED_IN_VAIN",
    "active_configs",
    "base_modules",
    "base_tensors",
    "holds_peft",
    "is_peft_model",
    "peft_models",
    "saved_copies",
]

WRAPPED_IN_VAIN = {
    "ADALORA": (
        "needs update_and_allocate after every step, and its state in every checkpoint: give "
        "peft.AdaLoraConfig(...) to the callback and leave get_peft_model out"
    ),
    "POLY": "needs a task id with every sample: train it with peft alone",
}
"""Tuners that are not trained as they stand, with the way that works."""


def is_peft_model(module: Any) -> bool:
    """Whether a module is ``peft``'s own wrapper around a model."""
    loaded: Any = sys.modules.get("peft.peft_model")
    return loaded is not None and isinstance(module, loaded.PeftModel)


def peft_models(module: nn.Module) -> dict[str, nn.Module]:
    """Return the wrappers in a module by their paths; one inside of another is left out."""
    found: dict[str, nn.Module] = {}
    for path, part in module.named_modules():
        if is_peft_model(part) and not any(_below(path, other) for other in found):
            found[path] = part
    return found


def holds_peft(module: nn.Module) -> str | None:
    """Return the path of the first layer or wrapper of ``peft`` in a module; ``None`` without."""
    layers: Any = sys.modules.get("peft.tuners.tuners_utils")
    other: Any = sys.modules.get("peft.utils.other")
    if layers is None or other is None:
        return None
    kinds = (layers.BaseTuner, layers.BaseTunerLayer, other.AuxiliaryTrainingWrapper)
    for path, part in module.named_modules():
        if is_peft_model(part) or isinstance(part, kinds):
            return path
    return None


def active_configs(model: Any) -> dict[str, Any]:
    """Return the configs of the adapters that are on, by the adapters' names."""
    return {name: model.peft_config[name] for name in model.active_adapters}


def base_modules(model: Any) -> Iterator[tuple[str, str, nn.Module]]:
    """Yield the name without the wrapper, the name now, and the module, of all of the base.

    Args:
        model: The ``PeftModel``.
    """
    base = model.get_base_model()
    path = next(name for name, module in model.named_modules() if module is base)
    waiting: list[tuple[str, str, nn.Module]] = [("", path, base)]
    while waiting:
        before, now, module = waiting.pop()
        now, module = _inside(now, module)
        yield before, now, module
        children = [(key, child) for key, child in module._modules.items() if child is not None]
        for key, child in reversed(children):
            waiting.append((_join(before, key), _join(now, key), child))


def base_tensors(model: Any) -> Iterator[tuple[str, str, Tensor]]:
    """Yield the name without the wrapper, the name now, and the tensor, of all of the base.

    Args:
        model: The ``PeftModel``.
    """
    for before, now, module in base_modules(model):
        for key, tensor in chain(module._parameters.items(), module._buffers.items()):
            if tensor is not None:
                yield _join(before, key), _join(now, key), tensor


def saved_copies(model: Any) -> dict[str, str]:
    """Return the copies of modules that are trained whole (``modules_to_save``) and are on.

    Args:
        model: The ``PeftModel``.

    Returns:
        The name of the copy, by the name of the module that ``peft`` put in its place.
    """
    other: Any = sys.modules["peft.utils.other"]
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, other.ModulesToSaveWrapper):
            for adapter in module.active_adapters:
                found[name] = f"{name}.modules_to_save.{adapter}"
    return found


_STANDS_AROUND = ("base_layer", "original_module", "token_adapter", "model")
"""The names under which layers of ``peft`` hold what they stand around."""


def _inside(now: str, module: nn.Module) -> tuple[str, nn.Module]:
    """Return what layers of ``peft`` stand around, and its name."""
    while _is_of_peft(module):
        held = [key for key in _STANDS_AROUND if isinstance(module._modules.get(key), nn.Module)]
        if not held:
            break
        now, module = _join(now, held[0]), module._modules[held[0]]  # type: ignore[assignment]
    return now, module


def _is_of_peft(module: nn.Module) -> bool:
    layers: Any = sys.modules["peft.tuners.tuners_utils"]
    other: Any = sys.modules["peft.utils.other"]
    prompts: Any = sys.modules.get("peft.tuners.adaption_prompt.layer")
    kinds = [layers.BaseTunerLayer, other.AuxiliaryTrainingWrapper]
    if prompts is not None:
        kinds += [prompts.AdaptedAttention, prompts.AdaptedAttentionGPT]
    return isinstance(module, tuple(kinds))


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _below(path: str, other: str) -> bool:
    return not other or path.startswith(f"{other}.")
