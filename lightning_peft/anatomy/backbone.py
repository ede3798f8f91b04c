"""Finding the backbone in a module."""

from __future__ import annotations

from torch import nn

from lightning_peft.anatomy import anatomy
from lightning_peft.errors import TargetError, near

__all__ = ["backbone_of", "is_backbone"]


def backbone_of(pl_module: nn.Module, name: str | None = None) -> tuple[str, nn.Module]:
    """Find the backbone of a LightningModule.

    The one child that is a model of timm, transformers or torchvision, or has repeated blocks, is
    the backbone; the other children (a head, a projection) belong to the task and are trained as
    they are. If no child looks like a backbone, it is the only child that has layers of its own, or
    the module itself.

    Args:
        pl_module: The LightningModule.
        name: The attribute path of the backbone, such as ``"encoder"`` or ``"model.net"``, if
            the search alone cannot find it; the empty string is the module itself.

    Returns:
        The attribute path and the backbone. A compiled backbone is returned without its wrapper.

    Raises:
        TargetError: If no such attribute exists, if there is nothing to train, or if several
            backbones are found and `name` does not say which.
    """
    children = {key: child for key, child in pl_module.named_children() if _has_parameters(child)}
    if name is not None:
        return _named_backbone(pl_module, name)
    if not _has_parameters(pl_module):
        raise TargetError(
            f"{type(pl_module).__name__} has no parameters when configure_model ends: expected a "
            "backbone to adapt. Build the network in __init__, setup or configure_model."
        )
    real = [key for key, child in children.items() if is_backbone(_unwrap(key, child)[1])]
    if len(real) > 1:
        sizes = {key: sum(p.numel() for p in children[key].parameters()) for key in real}
        largest = sorted(sizes, key=lambda key: -sizes[key])
        told = ", ".join(f"'{key}' ({sizes[key]:,} parameters)" for key in largest)
        raise TargetError(
            f"{type(pl_module).__name__} holds {len(real)} backbones: {told}. Say which one is "
            f"meant, for example backbone={largest[0]!r}, or backbone='' for the whole module."
        )
    if not real:
        own = any(True for _ in pl_module.parameters(recurse=False))
        real = [key for key, child in children.items() if any(True for _ in child.children())]
        if len(children) > 1 or own or not real:
            return "", pl_module
    return _unwrap(real[0], children[real[0]])


def _named_backbone(pl_module: nn.Module, name: str) -> tuple[str, nn.Module]:
    known = dict(pl_module.named_modules(remove_duplicate=False))  # it may have two names
    if name not in known:
        options = [p for p, part in pl_module.named_modules() if p and _has_parameters(part)]
        raise TargetError(
            f"{type(pl_module).__name__} has no module '{name}': expected the attribute path of "
            f"the backbone. {near(name, options)}"
        )
    return _unwrap(name, known[name])


def _unwrap(path: str, module: nn.Module) -> tuple[str, nn.Module]:
    """Return the path and the module inside the wrapper of ``torch.compile``."""
    inner = getattr(module, "_orig_mod", None)
    if isinstance(inner, nn.Module):
        return f"{path}._orig_mod" if path else "_orig_mod", inner
    return path, module


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def is_backbone(module: nn.Module) -> bool:
    """Whether a module is a model of a known library, or has repeated blocks."""
    found = anatomy(module)
    return found.family != "module" or bool(found.blocks)
