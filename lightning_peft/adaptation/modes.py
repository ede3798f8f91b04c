"""Modules that stay in evaluation mode, whatever their parent's ``train()`` says."""

from __future__ import annotations

from collections.abc import Iterable, Set

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

__all__ = ["hold_in_eval", "is_frozen_batchnorm", "is_held", "release"]


class _StaysInEval:
    """A replacement for the ``train`` method of one module.

    ``Module.train`` recurses by calling ``child.train(mode)``, so every parent uses an attribute on
    the instance. It is an object, not a closure, so that the module can still be pickled and a deep
    copy has its own.
    """

    def __init__(self, module: nn.Module, recurse: bool) -> None:
        self.module = module
        self.recurse = recurse

    def __call__(self, mode: bool = True) -> nn.Module:
        self.module.training = False
        for child in self.module.children():
            child.train(mode and not self.recurse)
        return self.module


def hold_in_eval(modules: Iterable[nn.Module], *, recurse: bool = True) -> None:
    """Put modules into evaluation mode and keep them there.

    Setting the mode of a frozen BatchNorm once is not enough: the next ``train()`` of a parent
    undoes it, and the statistics change again. Held modules stay as they are until :func:`release`.

    Args:
        modules: The modules.
        recurse: Whether everything below them is held too. Without it their children still
            follow the mode of their parents, as an adapter inside a frozen layer has to.
    """
    for module in modules:
        module.__dict__["train"] = _StaysInEval(module, recurse)
        for part in module.modules() if recurse else (module,):
            part.training = False


def release(modules: Iterable[nn.Module]) -> None:
    """Let modules follow their parent's mode again; their present mode is not changed."""
    for module in modules:
        if is_held(module):
            del module.__dict__["train"]


def is_held(module: nn.Module) -> bool:
    """Whether :func:`hold_in_eval` keeps this module in evaluation mode."""
    return isinstance(module.__dict__.get("train"), _StaysInEval)


def is_frozen_batchnorm(name: str, module: nn.Module, trained: Set[str]) -> bool:
    """Whether a module is a BatchNorm (or InstanceNorm) whose own parameters are not all trained.

    Args:
        name: Its name.
        module: The module.
        trained: The names of all trained parameters.
    """
    own = [f"{name}.{key}" for key, _ in module.named_parameters(recurse=False)]
    return isinstance(module, _NormBase) and not (bool(own) and trained >= set(own))
