"""The library that a backbone comes from, and its name there."""

from __future__ import annotations

import sys
from typing import Literal

from torch import nn

from lightning_peft.anatomy.tree import Node, unwrap

__all__ = ["Family", "architecture_of", "backbones_in", "family_of"]

Family = Literal["timm", "transformers", "torchvision", "module"]

_TORCHVISION_HEADS = ("fc", "classifier", "head", "heads")


def family_of(module: nn.Module) -> Family:
    """Return the library that a whole backbone comes from.

    Parts of a library's model (a `timm` block in a custom network) are of family `"module"`,
    and so is a wrapper around a backbone.

    Args:
        module: Any module; a wrapper of `torch.compile` is looked through.

    Returns:
        The family.
    """
    module = unwrap(module)
    transformers = sys.modules.get("transformers.modeling_utils")  # not imported: another model
    if transformers is not None and isinstance(module, transformers.PreTrainedModel):
        return "transformers"
    origins = [kind.__module__ for kind in type(module).__mro__]
    if any(origin.startswith("timm.models.") for origin in origins):
        marks = ("get_classifier", "pretrained_cfg", "default_cfg", "feature_info")
        if any(hasattr(module, mark) for mark in marks):
            return "timm"
    if any(origin.startswith("torchvision.models.") for origin in origins) and any(
        head in module._modules for head in _TORCHVISION_HEADS
    ):
        return "torchvision"
    return "module"


def architecture_of(module: nn.Module) -> str | None:
    """Return the name under which its library knows a backbone.

    Args:
        module: Any module.

    Returns:
        timm: the name in `timm.list_models()` (the class's name if there is none); transformers and
        torchvision: the class's name; any other module: None.
    """
    module = unwrap(module)
    family = family_of(module)
    if family == "module":
        return None
    if family == "timm":
        config = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
        named = config.get("architecture") if isinstance(config, dict) else None
        named = named or getattr(config, "architecture", None)
        if named:
            return str(named)
    return type(module).__name__


def backbones_in(root: Node) -> list[Node]:
    """Find the topmost known backbones in a model.

    Args:
        root: The model.

    Returns:
        Their nodes, in order; only the root if it is one itself.
    """
    if family_of(root.module) != "module":
        return [root]
    return [found for child in root.children for found in backbones_in(child)]
