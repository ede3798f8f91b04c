"""Finding the backbone in a module."""

from __future__ import annotations

from torch import nn

from lightning_peft.anatomy import anatomy
from lightning_peft.anatomy.family import backbones_in
from lightning_peft.anatomy.quantised import sizes_of
from lightning_peft.anatomy.task_layers import computes, leading_networks
from lightning_peft.anatomy.tree import grow
from lightning_peft.errors import TargetError, near

__all__ = ["backbone_of", "is_backbone"]


def backbone_of(pl_module: nn.Module, name: str | None = None) -> tuple[str, nn.Module]:
    """Find the backbone of a LightningModule.

    The one child that is, or holds, a model of timm, transformers or torchvision is the backbone;
    the other children (a head, a decoder, a projection) belong to the task and are trained as they
    are. Without such a child it is the one with repeated blocks; of an encoder and a decoder the
    encoder, or the module itself if both are built of attention, since they are one model then.
    Blocks that are the smaller part of the module are not its backbone (one attention layer among
    recurrent ones): then, and if no child looks like a backbone, it is the only child that has
    layers of its own, or the module itself.

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
    real = _meant(pl_module, children, real)
    if real == [""]:
        return "", pl_module
    if len(real) > 1:
        raise _several(pl_module, {key: children[key] for key in real})
    if not real:
        own = any(True for _ in pl_module.parameters(recurse=False))
        real = [key for key, child in children.items() if any(True for _ in child.children())]
        if len(children) > 1 or own or not real:
            return "", pl_module
    return _unwrap(real[0], children[real[0]])


def _meant(pl_module: nn.Module, children: dict[str, nn.Module], real: list[str]) -> list[str]:
    """Return the children that may be meant; the empty name is the whole module."""
    known = [key for key in real if backbones_in(grow(children[key]))]
    real = [key for key in real if computes(grow(children[key]))]  # not a list of embeddings
    if known or not real:
        return known
    if 2 * sum(_size(children[key]) for key in real) < _size(pl_module):
        return [""]
    if len(real) == 1 or len({(type(children[key]), _size(children[key])) for key in real}) == 1:
        return real  # the only one; or a pair of twins, of which one is a copy of the other
    first = leading_networks(grow(pl_module))
    return first if len(first) == 1 else [""]


def _several(pl_module: nn.Module, found: dict[str, nn.Module]) -> TargetError:
    """Return the error about several backbones: those that are trained first, then by size."""
    frozen = {
        key for key, child in found.items() if not any(p.requires_grad for p in child.parameters())
    }
    order = sorted(found, key=lambda key: (key in frozen, -_size(found[key])))
    told = ", ".join(
        f"'{key}' ({_size(found[key]):,} parameters{', frozen' if key in frozen else ''})"
        for key in order
    )
    return TargetError(
        f"{type(pl_module).__name__} holds {len(found)} backbones: {told}. Say which one is "
        f"meant, for example backbone={order[0]!r}, or backbone='' for the whole module."
    )


def _size(module: nn.Module) -> int:
    return sum(sizes_of(module).values())


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
    inner = module._modules.get("_orig_mod")
    if isinstance(inner, nn.Module):
        return f"{path}._orig_mod" if path else "_orig_mod", inner
    return path, module


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def is_backbone(module: nn.Module) -> bool:
    """Whether a module is a model of a known library, or has repeated blocks."""
    found = anatomy(module)
    return found.family != "module" or bool(found.blocks)
