"""The numbers of optimizer steps of a run and of its epochs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lightning_peft.lightning.class_names import is_a
from lightning_peft.lightning.namespace import pl

__all__ = ["RunLength", "goes_on", "planned_length", "present_length"]


@dataclass(frozen=True)
class RunLength:
    """The length of a run with automatic optimization.

    Attributes:
        total: The optimizer steps of the whole run; infinite, or below 0, if unknown.
        epochs: The optimizer steps of the first epochs, the last number is for all later ones;
            ``None`` if unknown.
    """

    total: float
    epochs: list[int] | None

    @property
    def known(self) -> bool:
        """Whether the run has an end that is known."""
        return 0 < self.total < math.inf


def goes_on(trainer: pl.Trainer) -> bool:
    """Whether the run continues another one, of which steps may be done."""
    return trainer.ckpt_path is not None or trainer.global_step > 0


def planned_length(trainer: pl.Trainer) -> RunLength:
    """Return the length of a run whose epochs are all alike: one that starts from nothing."""
    estimate = trainer.estimated_stepping_batches
    if trainer.train_dataloader is None:
        trainer.fit_loop.setup_data()
    batches, epochs = trainer.num_training_batches, trainer.max_epochs
    if not isinstance(batches, int):
        return RunLength(estimate, None)
    changing = _changing_accumulation(trainer)
    if changing is None:
        return RunLength(estimate, [math.ceil(batches / trainer.accumulate_grad_batches)])
    last = max(changing.__self__.scheduling)  # type: ignore[attr-defined]
    steps = [math.ceil(batches / changing(epoch)) for epoch in range(last + 1)]
    if epochs is None or epochs < 0:
        return RunLength(estimate, steps)
    # Lightning's estimate uses the present accumulation, before that callback sets its own
    total = sum(math.ceil(batches / changing(epoch)) for epoch in range(epochs))
    return RunLength(_cut(total, trainer), steps)


def present_length(trainer: pl.Trainer) -> RunLength:
    """Return the length of a run from the steps that are done and those that remain.

    A run that goes on with another batch size, accumulation or number of devices makes other steps
    than it has made: of its past only the number is known, which is divided evenly among the
    epochs that are done. To be called when training starts, once Lightning has restored the
    progress.
    """
    planned = planned_length(trainer)
    batches, last = trainer.num_training_batches, trainer.max_epochs
    automatic = trainer.lightning_module.automatic_optimization
    if not (trainer.global_step and automatic and isinstance(batches, int)):
        return planned
    loop: Any = trainer.fit_loop
    before: int = loop.epoch_progress.current.processed
    changing = _changing_accumulation(trainer)

    def steps(epoch: int) -> int:
        return math.ceil(
            batches / (changing(epoch) if changing else trainer.accumulate_grad_batches)
        )

    present, remaining = [], 0
    if loop.epoch_loop.restarting:  # in an epoch that is begun
        made, remaining = _rest_of_epoch(trainer, batches)
        present = [made + remaining]
    else:
        made = 0
    past = _evenly(trainer.global_step - made, before)
    if planned.epochs is not None and sum(map(steps, range(before))) == sum(past):
        past = [steps(epoch) for epoch in range(before)]
    known = [*past, *present]
    if last is None or last < 0:
        return RunLength(planned.total, [*known, steps(len(known))])
    future = [steps(epoch) for epoch in range(len(known), last)]
    total = trainer.global_step + remaining + sum(future)
    return RunLength(_cut(total, trainer), [*known, *future, steps(max(len(known), last))])


def _rest_of_epoch(trainer: pl.Trainer, batches: int) -> tuple[int, int]:
    """Return the optimizer steps that an epoch that is begun has made, and those that remain."""
    loop = trainer.fit_loop.epoch_loop
    done = loop.batch_progress.current.completed + loop.restarted_on_train_batch_end
    made = loop.automatic_optimization.optim_progress.optimizer.step.current.completed
    if loop.restarted_on_train_batch_end and done >= batches:  # Lightning begins the epoch anew
        ended = loop.batch_progress.is_last_batch
        made, done = 0 if ended else made, 0
    elif loop.restarted_on_last and (done >= batches or _ends_there(trainer)):
        return made, 0
    each = trainer.accumulate_grad_batches
    return made, math.ceil(max(batches, done) / each) - done // each


def _ends_there(trainer: pl.Trainer) -> bool:
    """Whether Lightning ends an epoch that was saved at its last validation without a batch more.

    It asks by the new number of batches whether that was a moment to validate.
    """
    outer: Any = trainer.fit_loop
    loop = outer.epoch_loop
    return bool(
        loop.batch_progress.is_last_batch and loop._should_check_val_fx(outer._data_fetcher)
    )


def _evenly(total: int, parts: int) -> list[int]:
    each, more = divmod(total, parts) if parts else (0, 0)
    return [each + (part < more) for part in range(parts)]


def _cut(total: int, trainer: pl.Trainer) -> int:
    return total if trainer.max_steps == -1 else min(total, trainer.max_steps)


def _changing_accumulation(trainer: pl.Trainer) -> Callable[[int], int] | None:
    """Return the function from epoch to batches in a step, if that number changes."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    changing = [c for c in callbacks if is_a(c, "GradientAccumulationScheduler")]
    return changing[0].get_accumulate_grad_batches if changing else None
