"""Merging the adapter at the end of a fit, and leaving a module as its class makes it."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_peft.adaptation.handle import Adaptation, find_adaptations
from lightning_peft.lightning.class_names import is_a
from lightning_peft.lightning.hooks import after_hook, release_hooks

__all__ = ["let_go", "merge_after_the_fit"]

_KEY = "lightning_peft.merge_at_end"


def merge_after_the_fit(pl_module: nn.Module) -> None:
    """Merge a module's adapter once every callback has ended its part of the fit.

    Args:
        pl_module: The module, in ``on_fit_end``.
    """
    after_hook(pl_module, "teardown", _KEY, _merge)


def let_go(pl_module: nn.Module) -> None:
    """Take hooks and attributes of this package from a module that is not adapted (any more).

    Args:
        pl_module: The module.
    """
    release_hooks(pl_module)
    for key in list(pl_module.__dict__):
        if key.startswith("_lightning_peft"):
            del pl_module.__dict__[key]


def _merge(pl_module: nn.Module, *args: Any, **kwargs: Any) -> None:
    places = find_adaptations(pl_module)
    adaptations = list(places.values())
    for adaptation in adaptations:
        adaptation.state.shares = None  # the average is in the module by now
    merged: list[Adaptation] = []
    try:
        for adaptation in adaptations:
            if not adaptation.merged:
                adaptation.merge()
                merged.append(adaptation)
    except BaseException:
        for adaptation in merged:
            adaptation.unmerge()
        raise
    for path, adaptation in places.items():
        plain = adaptation.merge_and_unload()
        if plain is not adaptation.model:  # the model inside of a PeftModel takes its place
            parent, _, key = path.rpartition(".")
            pl_module.get_submodule(parent)._modules[key] = plain
    trainer = pl_module.__dict__.get("_trainer")
    for callback in getattr(trainer, "callbacks", ()):
        if is_a(callback, "WeightAveraging"):
            callback._average_model = None  # it shares weights that hold the adapter now
    let_go(pl_module)
