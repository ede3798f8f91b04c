"""Hooks of a LightningModule, and the point at which its backbone is adapted.

The adapted model has to exist right after ``configure_model`` and before any checkpoint is
restored, any optimizer is made and any strategy wraps the model. Earlier, a module that builds its
network in ``setup`` or ``configure_model`` has nothing to adapt; later, the optimizer and the
wrapped model do not know the adapter. So the one point of injection is the end of
``configure_model``, and the callback reaches it by replacing that hook on the instance.
"""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType
from typing import Any

from torch import nn

__all__ = [
    "after_configure_model",
    "after_hook",
    "before_configure_model",
    "before_hook",
    "release_hooks",
]

Action = Callable[..., None]


class _InstanceHook:
    """A replacement for one hook of one module: first actions, the original, last actions.

    It is an object, not a closure: a deep copy of the module (as weight averaging makes) has its
    own, and the module can still be pickled.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module = module
        self.name = name
        self.original = module.__dict__.get(name)  # an instance attribute set by the user
        self.before: dict[str, Action] = {}
        self.actions: dict[str, Action] = {}

    @property
    def __code__(self) -> CodeType:
        # Lightning compares code objects to find out whether a hook is overridden
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
        key: The caller's key; a second call with the same key replaces the action.
        action: Called as ``action(pl_module, *hook_arguments)``. It has to be picklable.
    """
    _stand_in(pl_module, hook).actions[key] = action


def before_hook(pl_module: nn.Module, hook: str, key: str, action: Action) -> None:
    """Run an action before one hook of a LightningModule, as :func:`after_hook` does behind it."""
    _stand_in(pl_module, hook).before[key] = action


def before_configure_model(pl_module: nn.Module, key: str, action: Action) -> None:
    """Run an action before ``configure_model``, as :func:`after_hook` does after a hook."""
    before_hook(pl_module, "configure_model", key, action)


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
        key: The caller's key; a second call with the same key replaces the action.
        action: Called as ``action(pl_module)``. It has to be picklable.
    """
    after_hook(pl_module, "configure_model", key, action)


def release_hooks(pl_module: nn.Module) -> None:
    """Give a module its own hooks back, without any action of this package.

    Args:
        pl_module: The module.
    """
    for name, standing in list(pl_module.__dict__.items()):
        if isinstance(standing, _InstanceHook):
            del pl_module.__dict__[name]
            if standing.original is not None:
                pl_module.__dict__[name] = standing.original
