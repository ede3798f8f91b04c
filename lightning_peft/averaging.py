"""Averages of weights, for a module that is adapted after Lightning's callbacks have copied it.

``StochasticWeightAveraging`` copies the module before there is an adapter. And both of Lightning's
averaging callbacks hand the average over when training ends; a run that was killed behind its last
checkpoint has nothing left to train when it is resumed, and Lightning then hands over nothing.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_peft.kinds import is_a
from lightning_peft.lifecycle import after_configure_model, after_hook, find_adaptations

__all__ = ["keep_averages"]

_KEY = "lightning_peft.averaging"
_TRAINED = "_lightning_peft_trained"


def keep_averages(pl_module: nn.Module) -> None:
    """Let the averaging callbacks of a run work on the adapted module, to its very end.

    Args:
        pl_module: The LightningModule; asking twice changes nothing.
    """
    after_configure_model(pl_module, _KEY, _average_the_adapted)
    after_hook(pl_module, "on_fit_start", _KEY, _begin)
    after_hook(pl_module, "on_train_start", _KEY, _train)
    after_hook(pl_module, "on_fit_end", _KEY, _hand_over)


def _average_the_adapted(pl_module: nn.Module) -> None:
    """Let averaging that copied the module before it was adapted copy it once more."""
    trainer = pl_module.__dict__.get("_trainer")
    for callback in getattr(trainer, "callbacks", ()):
        if not is_a(callback, "StochasticWeightAveraging"):
            continue
        copied = callback._average_model
        if copied is not None and not find_adaptations(copied):
            callback.setup(trainer, pl_module, "fit")


def _begin(pl_module: nn.Module) -> None:
    pl_module.__dict__[_TRAINED] = False


def _train(pl_module: nn.Module) -> None:
    pl_module.__dict__[_TRAINED] = True


def _hand_over(pl_module: nn.Module) -> None:
    """End the averaging of a resumed run that had nothing left to train."""
    trainer: Any = pl_module.trainer
    if pl_module.__dict__.pop(_TRAINED) or trainer.ckpt_path is None:
        return
    for callback in trainer.callbacks:
        # with BatchNorm the other one has an epoch of its own for the statistics, which it runs
        plain = is_a(callback, "StochasticWeightAveraging") and not (
            callback._model_contains_batch_norm
        )
        if plain or is_a(callback, "WeightAveraging"):
            callback.on_train_end(trainer, pl_module)
