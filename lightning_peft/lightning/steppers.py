"""A callback for the adapters that act at each training step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning_peft.adaptation.handle import find_adaptations
from lightning_peft.errors import CheckpointError, MethodError
from lightning_peft.lightning.half_precision import check_half_precision
from lightning_peft.lightning.namespace import pl
from lightning_peft.methods.base import Stepper

__all__ = ["DriveSteppers"]


class DriveSteppers(pl.Callback):
    """Drive the steppers of all adaptations of a module; its checkpoints keep their state."""

    def __init__(self) -> None:
        self._steppers: list[Stepper] = []
        self._done = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the steppers, set the length of the run, and restore their states."""
        check_half_precision(trainer, pl_module)
        adaptations = find_adaptations(pl_module).values()
        self._steppers = [stepper for a in adaptations for stepper in a.steppers()]
        self._done = trainer.global_step
        if not self._steppers:
            return
        total = trainer.estimated_stepping_batches
        if not math.isfinite(total):
            raise MethodError(
                "expected a run of known length, since the method is scheduled over it, got one "
                "without: give the trainer max_steps or max_epochs."
            )
        for stepper in self._steppers:
            stepper.begin(int(total))
        for adaptation in adaptations:
            restored, adaptation.restored_steppers = adaptation.restored_steppers, []
            if trainer.ckpt_path is not None:
                for stepper, state in zip(adaptation.steppers(), restored, strict=False):
                    _restore(stepper, state)

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the gradients of penalties, as if they had been part of the loss."""
        if not self._steppers:
            return
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        factor = 1 / trainer.accumulate_grad_batches
        factor *= scaler.get_scale() if scaler is not None else 1.0
        for stepper in self._steppers:
            for name, gradient in stepper.penalty_gradients().items():
                parameter = stepper.model.get_parameter(name)
                if parameter.grad is not None:
                    parameter.grad.add_(gradient, alpha=factor)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Call the steppers after an optimizer step, while the gradients still exist."""
        if self._steppers and trainer.global_step > self._done:
            self._done = trainer.global_step
            for stepper in self._steppers:
                stepper.after_step(self._done)


def _restore(stepper: Stepper, state: Mapping[str, Any]) -> None:
    try:
        stepper.load_state_dict(state)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint's state of {type(stepper).__name__} does not fit this adaptation: "
            f"{type(error).__name__}: {error}"
        ) from error
