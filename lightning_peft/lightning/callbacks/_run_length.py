"""The numbers of optimizer steps of a run and of its epochs."""

from __future__ import annotations

import math
from collections.abc import Callable

from lightning_peft.lightning.class_names import is_a
from lightning_peft.lightning.namespace import pl

__all__ = ["estimated_steps", "steps_of_epochs"]


def estimated_steps(trainer: pl.Trainer) -> float:
    """Return the optimizer steps of the whole run; infinite, or below 0, if unknown."""
    estimate = trainer.estimated_stepping_batches
    batches, epochs = trainer.num_training_batches, trainer.max_epochs
    changing = _changing_accumulation(trainer)
    if changing is None or not isinstance(batches, int) or epochs is None or epochs < 0:
        return estimate
    # Lightning's estimate uses the present accumulation, before that callback sets its own
    total = sum(math.ceil(batches / changing(epoch)) for epoch in range(epochs))
    return total if trainer.max_steps == -1 else min(total, trainer.max_steps)


def steps_of_epochs(trainer: pl.Trainer) -> list[int] | None:
    """Return the optimizer steps of the first epochs; the last number is for all later ones."""
    if trainer.train_dataloader is None:
        trainer.fit_loop.setup_data()
    batches = trainer.num_training_batches
    if not isinstance(batches, int):
        return None
    changing = _changing_accumulation(trainer)
    if changing is None:
        return [math.ceil(batches / trainer.accumulate_grad_batches)]
    last = max(changing.__self__.scheduling)  # type: ignore[attr-defined]
    return [math.ceil(batches / changing(epoch)) for epoch in range(last + 1)]


def _changing_accumulation(trainer: pl.Trainer) -> Callable[[int], int] | None:
    """Return the function from epoch to batches in a step, if that number changes."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    changing = [c for c in callbacks if is_a(c, "GradientAccumulationScheduler")]
    return changing[0].get_accumulate_grad_batches if changing else None
