"""Weight averaging for a module that is adapted after Lightning's callbacks have copied it.

``StochasticWeightAveraging`` copies the module before it has an adapter. And both of Lightning's
averaging callbacks copy the average into the module when training ends; but if a run was killed
after its last checkpoint, the resumed run has nothing left to train, and Lightning skips this.

``WeightAveraging`` keeps a second model and averages all of it. A frozen parameter averaged with
itself is off by rounding after a few steps (``0.999 x + 0.001 x`` is not ``x``), an integer buffer
is rounded down, and validation and the end of training copy these values into the backbone. So both
models share the frozen tensors of an adaptation, which are not averaged. And its weights-only
checkpoints hold the current weights, although validation has scored the average: here they hold the
average.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

from torch import Tensor, nn

from lightning_peft.adaptation.handle import Adaptation, find_adaptation, find_adaptations
from lightning_peft.lightning.class_names import is_a
from lightning_peft.lightning.hooks import after_configure_model, after_hook

__all__ = ["keep_averages", "save_average"]

_KEY = "lightning_peft.averaging"
_TRAINED = "_lightning_peft_trained"


def keep_averages(pl_module: nn.Module) -> None:
    """Make the averaging callbacks of a run work on the adapted module, until its end.

    Args:
        pl_module: The LightningModule; calling it again has no effect.
    """
    after_configure_model(pl_module, _KEY, _average_the_adapted)
    after_hook(pl_module, "on_fit_start", _KEY, _begin)
    after_hook(pl_module, "on_train_start", _KEY, _train)
    after_hook(pl_module, "on_fit_end", _KEY, _hand_over)


def _average_the_adapted(pl_module: nn.Module) -> None:
    """Make averaging callbacks copy the module again if they copied it before the adaptation."""
    trainer = pl_module.__dict__.get("_trainer")
    for callback in getattr(trainer, "callbacks", ()):
        if not is_a(callback, "StochasticWeightAveraging"):
            continue
        copied = callback._average_model
        if copied is not None and not find_adaptations(copied):
            callback.setup(trainer, pl_module, "fit")


def save_average(pl_module: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Write the average into a weights-only checkpoint, as Lightning does for a full one.

    Args:
        pl_module: The LightningModule that is being saved.
        checkpoint: Lightning's checkpoint; changed in place.
    """
    trainer: Any = pl_module.__dict__.get("_trainer")
    if "callbacks" in checkpoint or trainer is None:
        return  # the callback itself does so for a full one
    if _is_fitting(trainer):
        for average in _averages(trainer):
            checkpoint["state_dict"] = average.module.state_dict()


def _is_fitting(trainer: Any) -> bool:
    return bool(trainer.state.fn == "fit" and trainer.state.status == "running")


def _averages(trainer: Any) -> list[Any]:
    """Return the averaged models of ``WeightAveraging`` and its subclasses."""
    callbacks = getattr(trainer, "callbacks", ())
    found = [c._average_model for c in callbacks if is_a(c, "WeightAveraging")]
    return [average for average in found if average is not None]


def _share_what_is_frozen(pl_module: nn.Module) -> None:
    """Make the averaged model share the frozen tensors of the module."""
    for average in _averages(pl_module.trainer):
        for path, adaptation in find_adaptations(pl_module).items():
            copied = average.module.get_submodule(path)
            _share(adaptation, copied)
            for one in (adaptation, find_adaptation(copied)):
                if one is not None:
                    one.state.shares = partial(_is_fitting, pl_module.trainer)
        for name in ("avg_fn", "multi_avg_fn"):
            function = getattr(average, name)
            if function is not None and not isinstance(function, _OfWhatDiffers):
                setattr(average, name, _OfWhatDiffers(function))


def _share(adaptation: Adaptation, copied: nn.Module) -> None:
    kept = adaptation.state_names()
    tensors = chain(
        adaptation.model.named_parameters(remove_duplicate=False),
        adaptation.model.named_buffers(remove_duplicate=False),
    )
    # by identity: a trained tensor may have further names, which are not in its state
    own = {id(tensor) for name, tensor in tensors if name in kept}
    twins = dict(copied.named_modules(remove_duplicate=False))
    for path, part in adaptation.model.named_modules(remove_duplicate=False):
        if path not in twins:  # added by a callback since the copy was made
            continue
        for key, parameter in part._parameters.items():
            if id(parameter) not in own:
                twins[path]._parameters[key] = parameter
        for key, buffer in part._buffers.items():
            if id(buffer) not in own:
                twins[path]._buffers[key] = buffer


class _OfWhatDiffers:
    """An averaging function for torch's ``AveragedModel`` that skips shared tensors."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, average: Any, current: Any, count: Any) -> Any:
        if isinstance(average, Tensor):
            if average.data_ptr() == current.data_ptr():
                return average
            return self.function(average, current, count)
        pairs = [
            pair
            for pair in zip(average, current, strict=True)
            if pair[0].data_ptr() != pair[1].data_ptr()
        ]
        if pairs:
            first, second = (list(side) for side in zip(*pairs, strict=True))
            self.function(first, second, count)
        return None


def _begin(pl_module: nn.Module) -> None:
    pl_module.__dict__[_TRAINED] = False
    _share_what_is_frozen(pl_module)  # BackboneFreeze's stages are known by now


def _train(pl_module: nn.Module) -> None:
    pl_module.__dict__[_TRAINED] = True


def _hand_over(pl_module: nn.Module) -> None:
    """End the averaging of a resumed run that had nothing left to train."""
    trainer: Any = pl_module.trainer
    if pl_module.__dict__.pop(_TRAINED) or trainer.ckpt_path is None:
        return
    for callback in trainer.callbacks:
        # with BatchNorm the other callback runs an extra epoch for the statistics
        plain = is_a(callback, "StochasticWeightAveraging") and not (
            callback._model_contains_batch_norm
        )
        if plain or is_a(callback, "WeightAveraging"):
            callback.on_train_end(trainer, pl_module)
