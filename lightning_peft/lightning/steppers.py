"""A callback for the adapters that act at each training step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_peft.adaptation.handle import find_adaptations
from lightning_peft.anatomy.names import parameter_at
from lightning_peft.errors import CheckpointError, MethodError
from lightning_peft.lightning.half_precision import check_half_precision
from lightning_peft.lightning.namespace import pl
from lightning_peft.lightning.run_length import RunLength, goes_on, planned_length, present_length
from lightning_peft.methods.base import Stepper

__all__ = ["DriveSteppers"]


class DriveSteppers(pl.Callback):
    """Drive the steppers of all adaptations of a module; its checkpoints keep their state."""

    def __init__(self) -> None:
        self._steppers: list[Stepper] = []
        self._done = 0
        self._goes_on = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the steppers, set the length of the run, and restore their states."""
        check_half_precision(trainer, pl_module)
        adaptations = find_adaptations(pl_module).values()
        self._steppers = [stepper for a in adaptations for stepper in a.steppers()]
        self._done = trainer.global_step
        if not self._steppers:
            return
        self._goes_on = goes_on(trainer)
        self._begin(planned_length(trainer), begin=not self._goes_on)
        for adaptation in adaptations:
            restored, adaptation.restored_steppers = adaptation.restored_steppers, []
            if trainer.ckpt_path is not None:
                for stepper, state in zip(adaptation.steppers(), restored, strict=False):
                    _restore(stepper, state)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the length of a run that goes on, now that what is done is known."""
        self._done = trainer.global_step
        if self._steppers and self._goes_on:
            self._begin(present_length(trainer))

    def _begin(self, length: RunLength, begin: bool = True) -> None:
        if not length.known:
            raise MethodError(
                "expected a run of known length, since the method is scheduled over it, got one "
                "without: give the trainer max_steps or max_epochs."
            )
        for stepper in self._steppers if begin else ():
            stepper.begin(int(length.total))

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the gradients of penalties, as if they had been part of the loss."""
        if not self._steppers:
            return
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        factor = 1 / trainer.accumulate_grad_batches
        factor *= scaler.get_scale() if scaler is not None else 1.0
        for stepper in self._steppers:
            for name, gradient in stepper.penalty_gradients().items():
                parameter = parameter_at(stepper.model, name)
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
