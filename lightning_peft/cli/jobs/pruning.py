"""Stop a trial of a search after a validation if its pruner says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.runs.trial import Trial
from lightning_peft.errors import near
from lightning_peft.lightning.namespace import pl

__all__ = ["Pruned", "TrialPruning"]


@dataclass(frozen=True)
class Pruned:
    """The point at which a run was stopped.

    Attributes:
        step: The number of optimizer steps.
        validation: The number of validations.
        name: The metric that the pruner judged by.
        value: Its value.
    """

    step: int
    validation: int
    name: str
    value: float


class TrialPruning(pl.Callback):
    """Reports the objective after each validation, and stops the run when the pruner says so.

    Validations are counted, not steps, so that trials with different batches or epochs can be
    compared. Rank 0 accesses the study, and all ranks stop together. A run that has reached its
    last step is never stopped.

    Args:
        trial: The trial that this run is.
        objective: The validation metric; by default the one that chooses the checkpoint.
    """

    def __init__(self, trial: Trial, objective: str | None = None) -> None:
        self.trial = trial
        self.objective = objective
        self.validations = 0
        self.pruned: Pruned | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the metric to judge by.

        Raises:
            ConfigError: If there is none.
        """
        if stage != "fit":
            return
        if not trainer.limit_val_batches:
            raise ConfigError(
                [
                    "hydra/sweeper/pruner: a pruner needs validations, but this run has none. Keep "
                    "images for validation, or leave the pruner out."
                ]
            )
        if self.objective is None:
            callbacks: list[Any] = trainer.checkpoint_callbacks
            monitors = [c.monitor for c in callbacks if str(c.monitor).startswith("val/")]
            self.objective = monitors[0] if monitors else "val/accuracy"

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the objective, and ask the pruner.

        Raises:
            ConfigError: If the validation does not measure the objective.
        """
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        name = str(self.objective)
        measured = trainer.callback_metrics
        if name not in measured:
            names = [str(key) for key in measured if str(key).startswith("val/")]
            told = f"expected a metric of the validation, got '{name}'. {near(name, names)}"
            raise ConfigError([f"objective: {told}"])
        value = float(measured[name])
        stop = trainer.is_global_zero and self.trial.report(value, self.validations)
        self.validations += 1
        if trainer.strategy.reduce_boolean_decision(stop and not _at_its_end(trainer), all=False):
            self.pruned = Pruned(trainer.global_step, self.validations, name, value)
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Return the count, for a resumed run."""
        return {"validations": self.validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the count."""
        self.validations = int(state_dict["validations"])


def _at_its_end(trainer: pl.Trainer) -> bool:
    if 0 <= trainer.max_steps <= trainer.global_step:
        return True
    last_epoch = trainer.max_epochs not in (None, -1) and (
        trainer.current_epoch + 1 >= (trainer.max_epochs or 0)
    )
    return last_epoch and trainer.is_last_batch
