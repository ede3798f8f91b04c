"""When adaptation happens in the life of a LightningModule.

The adapted model has to exist right after ``configure_model`` and before any checkpoint is
restored, any optimizer is made and any strategy wraps the model. Earlier, a module that builds its
network in ``setup`` or ``configure_model`` has nothing to adapt; later, the optimizer and the
wrapped model do not know the adapter. So the one point of injection is the end of
``configure_model``, and the callback reaches it by standing in for that hook on the instance.
"""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType
from typing import Any

from torch import nn

from lightning_peft.adaptation import Adaptation, find_adaptation
from lightning_peft.anatomy import anatomy
from lightning_peft.errors import TargetError, near

__all__ = [
    "after_configure_model",
    "after_hook",
    "backbone_of",
    "before_configure_model",
    "find_adaptations",
    "is_backbone",
]

Action = Callable[..., None]


class _InstanceHook:
    """Stands in for one hook of one LightningModule: what comes before, the original, the actions.

    An object, not a closure: a deep copy of the module (as weight averaging makes) carries its own,
    and the module can still be pickled.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module = module
        self.name = name
        self.original = module.__dict__.get(name)  # an instance attribute of the user's own
        self.before: dict[str, Action] = {}
        self.actions: dict[str, Action] = {}

    @property
    def __code__(self) -> CodeType:
        # Lightning asks "is this hook overridden?" by comparing code objects
        return type(self).__call__.__code__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for action in list(self.before.values()):
            action(self.module, *args, **kwargs)
        if self.original is not None:
            result = self.original(*args, **kwargs)
        else:
            result = getattr(type(self.module), self.name)(self.module, *args, **kwargs)
        for action in list(self.actions.values()):
            action(self.module, *args, **kwargs)
        return result


def after_hook(pl_module: nn.Module, hook: str, key: str, action: Action) -> None:
    """Run an action at the end of one hook of a LightningModule, on this instance only.

    Args:
        pl_module: The module.
        hook: The hook's name, such as ``"on_save_checkpoint"``.
        key: Who asks; asking again under the same key replaces the action.
        action: Called as ``action(pl_module, *hook_arguments)``. Has to be picklable.
    """
    _stand_in(pl_module, hook).actions[key] = action


def before_configure_model(pl_module: nn.Module, key: str, action: Action) -> None:
    """Run an action before ``configure_model``, as :func:`after_hook` does after a hook."""
    _stand_in(pl_module, "configure_model").before[key] = action


def _stand_in(pl_module: nn.Module, hook: str) -> _InstanceHook:
    standing = pl_module.__dict__.get(hook)
    if not isinstance(standing, _InstanceHook):
        standing = _InstanceHook(pl_module, hook)
        pl_module.__dict__[hook] = standing
    return standing


def after_configure_model(pl_module: nn.Module, key: str, action: Action) -> None:
    """Run an action at the one point where a model may be changed.

    Lightning calls ``configure_model`` again at every fit, validate, test and predict, so the
    action has to be idempotent.

    Args:
        pl_module: The LightningModule.
        key: Who asks; asking again under the same key replaces the action.
        action: Called as ``action(pl_module)``. Has to be picklable.
    """
    after_hook(pl_module, "configure_model", key, action)


def find_adaptations(pl_module: nn.Module) -> dict[str, Adaptation]:
    """Find every adapted backbone below a module.

    Returns:
        The path of each adapted backbone (``""`` for the module itself) and its adaptation.
    """
    found = ((path, find_adaptation(part)) for path, part in pl_module.named_modules())
    return {path: adaptation for path, adaptation in found if adaptation is not None}


def backbone_of(pl_module: nn.Module, name: str | None = None) -> tuple[str, nn.Module]:
    """Find the backbone of a LightningModule.

    The one child that is a model of timm, transformers or torchvision, or has repeated blocks, is
    the backbone; the children beside it (a head, a projection) are the task's own and are trained
    as they are. Where no child looks like a backbone, it is the only child that has layers of its
    own, or the module itself.

    Args:
        pl_module: The LightningModule.
        name: The attribute path of the backbone, such as ``"encoder"`` or ``"model.net"``, where
            the search needs a word.

    Returns:
        The attribute path and the backbone. A compiled backbone is returned without its wrapper.

    Raises:
        TargetError: If no such attribute exists, if there is nothing to train, or if two backbones
            are found and nothing says which.
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
        sizes = ", ".join(
            f"'{key}' ({sum(p.numel() for p in children[key].parameters()):,} parameters)"
            for key in real
        )
        raise TargetError(
            f"{type(pl_module).__name__} holds {len(real)} backbones: {sizes}. "
            f"Say which one is meant, for example backbone={real[0]!r}."
        )
    if not real:
        own = any(True for _ in pl_module.parameters(recurse=False))
        real = [key for key, child in children.items() if any(True for _ in child.children())]
        if len(children) > 1 or own or not real:
            return "", pl_module
    return _unwrap(real[0], children[real[0]])


def _named_backbone(pl_module: nn.Module, name: str) -> tuple[str, nn.Module]:
    known = dict(pl_module.named_modules())
    if name not in known:
        options = [path for path, part in known.items() if path and _has_parameters(part)]
        raise TargetError(
            f"{type(pl_module).__name__} has no module '{name}': expected the attribute path of "
            f"the backbone. {near(name, options)}"
        )
    return _unwrap(name, known[name])


def _unwrap(path: str, module: nn.Module) -> tuple[str, nn.Module]:
    """Step inside the wrapper that ``torch.compile`` puts around a module."""
    inner = getattr(module, "_orig_mod", None)
    if isinstance(inner, nn.Module):
        return f"{path}._orig_mod" if path else "_orig_mod", inner
    return path, module


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def is_backbone(module: nn.Module) -> bool:
    """Say whether a module is a model of a known library, or has repeated blocks."""
    found = anatomy(module)
    return found.family != "module" or bool(found.blocks)
