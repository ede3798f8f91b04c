"""The base of the schedules: when a multiplier is put on the optimizers, and for which length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal, get_args

from torch.optim import Optimizer

from lightning_peft.errors import ScheduleError
from lightning_peft.lightning.callbacks._by_hand import FollowingLR
from lightning_peft.lightning.callbacks._kept import keep_schedule
from lightning_peft.lightning.callbacks._replaced import OwnStep, take_the_place
from lightning_peft.lightning.callbacks._trainer import trainer_import, warn_on_rank_zero
from lightning_peft.lightning.class_names import is_a
from lightning_peft.lightning.lengths import Length, as_length
from lightning_peft.lightning.namespace import pl
from lightning_peft.lightning.run_length import RunLength, goes_on, planned_length, present_length
from lightning_peft.lightning.schedules import Kind, Multiplier, MultiplierLR

__all__ = ["OnResume", "Schedule", "no_length"]

OnResume = Literal["remaining", "keep"]


class Schedule(pl.Callback):
    """Schedule the learning rate of the module's optimizer.

    The module's ``configure_optimizers`` returns an optimizer with the full rates and no
    scheduler, or ``replace`` puts the schedule in the place of those that it returns. When fit
    starts, the schedule is added to the trainer's own, so that it is stepped once for each
    optimizer step (gradient accumulation and several devices are accounted for), is saved in
    checkpoints and restored from them, and is logged by ``LearningRateMonitor``. Every parameter
    group is scheduled from its own rate, including groups that are added later.

    The length is the trainer's own estimate of the run. A resumed run continues where it
    stopped, and its length is that of the steps that are done and of those that remain: with other
    ``max_epochs``, another batch size, accumulation or number of devices than before it follows
    the new schedule from there, with a warning. With ``on_resume="keep"`` it follows the schedule
    of its checkpoint to the end, whatever the length of the run is now.

    Under manual optimization only the module knows the number of optimizer steps, so
    ``total_steps`` has to be given (for each optimizer), and each schedule follows the steps of
    its own optimizer: the module need not step it, and changes nothing if it does.

    Args:
        warmup: The warm-up: a fraction of the run (0.1 or ``"10%"``), optimizer steps (500 or
            ``"500 steps"``) or epochs (``"2 epochs"``).
        final: The fraction of the rate that is left at the end.
        total_steps: The optimizer steps of the run, if the trainer cannot know them.
        on_resume: What a resumed run follows: ``"remaining"``, a schedule over the steps that are
            done and those that remain, or ``"keep"``, that of its checkpoint.
        replace: Whether to take the place of schedulers that ``configure_optimizers`` returns, in
            whatever form. The full rate is the one that the optimizer was made with, or the highest
            of a scheduler that overwrites it (``OneCycleLR``, ``CyclicLR``); a line says so.

    Raises:
        ScheduleError: If the arguments are invalid; when fit starts also if the run has no known
            length or is shorter than the warm-up, or if the optimizer already has a scheduler
            and ``replace`` is off.
    """

    kind: ClassVar[Kind]

    def __init__(
        self,
        warmup: float | int | str = 0.1,
        *,
        final: float = 0.0,
        total_steps: int | None = None,
        on_resume: OnResume = "remaining",
        replace: bool = False,
    ) -> None:
        self.warmup = warmup
        self.final = final
        self.total_steps = total_steps
        self.on_resume = on_resume
        self.replace = replace
        self._schedulers: list[MultiplierLR] = []
        self._own_step: OwnStep | None = None
        self._goes_on = False
        problems = list(self._problems())
        if problems:
            raise ScheduleError(f"{type(self).__name__}: " + "; ".join(problems))

    def _problems(self) -> Iterator[str]:
        total = self.total_steps
        yield from no_length(self.warmup, "warmup")
        if isinstance(self.final, bool) or not 0 <= self.final <= 1:
            yield f"expected final to be a part of the rate in [0, 1], got {self.final!r}"
        if total is not None and (
            isinstance(total, bool) or not isinstance(total, int) or total < 1
        ):
            yield f"expected total_steps to be a whole number from 1, got {total!r}"
        if self.on_resume not in get_args(OnResume):
            yield f"expected on_resume to be 'remaining' or 'keep', got {self.on_resume!r}"
        if not isinstance(self.replace, bool):
            yield f"expected replace to be True or False, got {self.replace!r}"

    def multiplier(
        self, total_steps: int | None, epoch_steps: Sequence[int] | int | None = None
    ) -> Multiplier:
        """Return the schedule of a run of a given length.

        Fractions of the run and of an epoch are rounded to whole steps.

        Args:
            total_steps: The length of the run; ``None`` if it has none.
            epoch_steps: The optimizer steps of an epoch, or of each of the first epochs where they
                differ; ``None`` if unknown.

        Raises:
            ScheduleError: If the warm-up does not fit into the run, or the schedule needs a length
                that is not known.
        """
        try:
            warmup = as_length(self.warmup, "warmup").steps(total_steps, epoch_steps)
            total = self._end(warmup) if total_steps is None else total_steps
            return Multiplier(total, warmup, self.kind, self.final, self._decay(total, epoch_steps))
        except ScheduleError as error:
            raise ScheduleError(f"{type(self).__name__}: {error}") from None

    def _end(self, warmup_steps: int) -> int:
        """Return the last step that the schedule has to cover in a run without an end."""
        raise ScheduleError("expected a run of known length")

    def _decay(self, total_steps: int, epoch_steps: Sequence[int] | int | None) -> float:
        """Return the fraction of the run that decays, for the shapes that need it."""
        return 0.1

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the schedule, after the optimizer is made and before its state is restored."""
        self._forget()
        if trainer.limit_train_batches == 0 or trainer.max_epochs == 0 or trainer.max_steps == 0:
            return  # nothing is trained
        automatic = pl_module.automatic_optimization
        self._goes_on = automatic and goes_on(trainer)
        planned = planned_length(trainer) if automatic else None
        self._length(trainer, planned)
        try:
            multiplier = self._of_run(trainer, planned)
        except ScheduleError:
            if not self._goes_on:
                raise
            # what is done is not known before Lightning has restored it
            multiplier = Multiplier(1, 0, "constant")
        optimizers = self._optimizers(trainer)
        take_the_place(self, trainer, automatic)
        self._own_step = OwnStep(pl_module)
        self._own_step.put()
        config = trainer_import(trainer, "utilities.types").LRSchedulerConfig
        kind = MultiplierLR if automatic else FollowingLR
        for optimizer in optimizers:
            scheduler = kind(optimizer, multiplier)
            self._schedulers.append(scheduler)
            # frequency 1: Lightning counts optimizer steps here, not batches
            trainer.strategy.lr_scheduler_configs.append(
                config(scheduler, interval="step", frequency=1)
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give a run that goes on its length, and its place in it if its checkpoint has none."""
        if self.on_resume == "keep" and (
            self._goes_on or any(s.restored for s in self._schedulers)
        ):
            length = present_length(trainer) if self._goes_on else None
            for scheduler in self._schedulers:
                keep_schedule(self, scheduler, trainer, length)
            return
        anew = None
        if self._schedulers and self._goes_on:
            anew = self._of_run(trainer, present_length(trainer))
        for scheduler in self._schedulers:
            if anew is not None:
                scheduler.multiplier = anew
                scheduler.refresh(scheduler.last_epoch or trainer.global_step)
            made_with = scheduler.restored
            if made_with is not None and made_with != scheduler.multiplier:
                total, done = scheduler.multiplier.total_steps, scheduler.last_epoch
                warn_on_rank_zero(
                    trainer,
                    f"{type(self).__name__}: the checkpoint was made with {made_with}, this run "
                    f"has {scheduler.multiplier}, of which {done} steps are done and "
                    f"{max(total - done, 0)} remain: the learning rate follows "
                    f"the latter from step {done} on.",
                )

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Release the optimizers."""
        self._forget()

    def _forget(self) -> None:
        for scheduler in self._schedulers:
            if isinstance(scheduler, FollowingLR):
                scheduler.let_go()
        if self._own_step is not None:
            self._own_step.take_away()
            self._own_step = None
        self._schedulers = []

    def needs_length(self) -> bool:
        """Whether this schedule needs a run of known length."""
        return True

    def _is_a_part(self) -> bool:
        return all(length.unit == "part" for length in self._lengths())

    def _lengths(self) -> list[Length]:
        return [as_length(self.warmup, "warmup")]

    def _of_run(self, trainer: pl.Trainer, length: RunLength | None) -> Multiplier:
        """Return the schedule of a run; its length is ``None`` under manual optimization."""
        total = self._length(trainer, length)
        if getattr(trainer, "fast_dev_run", False) and total is not None and not self._is_a_part():
            # the warm-up is not meant for a dry run of a few steps
            return Multiplier(total, 0, "constant")
        return self.multiplier(total, None if length is None else length.epochs)

    def _length(self, trainer: pl.Trainer, length: RunLength | None) -> int | None:
        if self.total_steps is not None:
            return self.total_steps
        name = type(self).__name__
        if length is None:
            raise ScheduleError(
                f"{name}: under manual optimization the trainer cannot know how many steps an "
                f"optimizer makes. Pass them: {name}(total_steps=...)."
            )
        if not length.known:
            raise ScheduleError(
                f"{name}: expected a run of known length, as its decay or a warm-up in percent "
                f"needs, got max_epochs={trainer.max_epochs}, "
                f"max_steps={trainer.max_steps} and {trainer.num_training_batches} batches an "
                f"epoch. Pass {name}(total_steps=...), or Trainer(max_steps=...)."
            )
        return int(length.total)

    def _optimizers(self, trainer: pl.Trainer) -> list[Optimizer]:
        name = type(self).__name__
        optimizers = trainer.optimizers
        if not optimizers or any(is_a(optimizer, "_MockOptimizer") for optimizer in optimizers):
            raise ScheduleError(
                f"{name}: configure_optimizers of {type(trainer.lightning_module).__name__} "
                f"returns no optimizer, so there is no learning rate. Return one, or remove {name}."
            )
        strange = [type(o).__name__ for o in optimizers if not isinstance(o, Optimizer)]
        if strange:
            raise ScheduleError(
                f"{name}: expected torch optimizers, got {', '.join(strange)} from "
                f"{type(trainer.strategy).__name__}. Let that strategy schedule the learning rate."
            )
        return optimizers


def no_length(value: object, name: str) -> Iterator[str]:
    """Yield what is wrong with a length, if something is."""
    try:
        as_length(value, name)
    except ScheduleError as error:
        yield str(error)
