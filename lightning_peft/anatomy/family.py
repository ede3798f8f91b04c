"""The library that a backbone comes from, and its name there."""

from __future__ import annotations

import sys
from typing import Literal

from torch import nn

from lightning_peft.anatomy.tree import Node, unwrap

__all__ = ["Family", "architecture_of", "backbones_in", "family_of"]

Family = Literal["timm", "transformers", "torchvision", "module"]

_TORCHVISION_HEADS = ("fc", "classifier", "head", "heads")

# torchvision's whole models, which remain so if a subclass deletes the head (the encoders of
# segmentation packages); their parts, such as a mask head, are in the same modules.
_TORCHVISION_MODELS = frozenset(
    (
        *("AlexNet", "ConvNeXt", "DenseNet", "EfficientNet", "GoogLeNet", "Inception3", "MNASNet"),
        *("MaxVit", "MobileNetV2", "MobileNetV3", "RegNet", "ResNet", "ShuffleNetV2", "SqueezeNet"),
        *("SwinTransformer", "VGG", "VisionTransformer", "MViT", "S3D", "VideoResNet"),
    )
)


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
    return "torchvision" if _is_torchvision(module) else "module"


def _is_torchvision(module: nn.Module) -> bool:
    """Whether a module is a whole model of torchvision, also if its head was deleted."""
    kinds = [k for k in type(module).__mro__ if k.__module__.startswith("torchvision.models.")]
    if any(kind.__module__.startswith("torchvision.models.detection.") for kind in kinds):
        return {"backbone", "transform"} <= set(module._modules)  # a region proposal has a head too
    if any(kind.__name__ in _TORCHVISION_MODELS for kind in kinds):
        return True
    return bool(kinds) and any(head in module._modules for head in _TORCHVISION_HEADS)


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
