"""Putting a schedule in the place of the schedulers that a module makes itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR

from lightning_peft.errors import ScheduleError
from lightning_peft.lightning.namespace import pl, pl_import
from lightning_peft.lightning.schedules import MultiplierLR

__all__ = ["OwnStep", "every_scheduler", "schedulers_on", "take_the_place"]

_STEP = "lr_scheduler_step"
_LIGHTNING = ("lightning.pytorch.", "pytorch_lightning.")


def take_the_place(schedule: Any, trainer: pl.Trainer, automatic: bool) -> None:
    """Remove the module's own schedulers from a run, and give its optimizers their full rates.

    Args:
        schedule: The callback, a ``Schedule``.
        trainer: The trainer, before the states of optimizers and schedulers are restored.
        automatic: Whether Lightning steps the schedulers.

    Raises:
        ScheduleError: If there are some and ``schedule.replace`` is off, another callback has put
            its own there, or the module steps them itself and has another number of them than of
            optimizers.
    """
    name = type(schedule).__name__
    taken = [config.scheduler for config in trainer.strategy.lr_scheduler_configs]
    if not taken:
        return
    told = ", ".join(type(scheduler).__name__ for scheduler in taken)
    module = type(trainer.lightning_module).__name__
    if any(isinstance(scheduler, MultiplierLR) for scheduler in taken):
        raise ScheduleError(
            f"{name}: the optimizer already has a scheduler ({told}), of another callback: "
            "expected one schedule for a trainer. Remove one of them."
        )
    if not schedule.replace:
        raise ScheduleError(
            f"{name}: the optimizer already has a scheduler ({told}), which configure_optimizers "
            f"of {module} makes. Give {name}(replace=True) to put this schedule in its place, or "
            f"remove {name}."
        )
    if not automatic and len(taken) != len(trainer.optimizers):
        raise ScheduleError(
            f"{name}: expected a scheduler for each optimizer, since {module} steps them itself "
            f"(manual optimization), got {len(taken)} ({told}) for {len(trainer.optimizers)}. "
            f"Remove {name}, or let configure_optimizers return none."
        )
    trainer.strategy.lr_scheduler_configs = []
    for optimizer in trainer.optimizers:
        _at_full_rate(optimizer, [s for s in every_scheduler(taken) if _is_on(s, optimizer)])
    rates = [float(g["lr"]) for o in trainer.optimizers for g in o.param_groups]
    shown = ", ".join(f"{rate:.3g}" for rate in dict.fromkeys(rates))
    pl_import("utilities.rank_zero").rank_zero_info(
        f"{name}: takes the place of {told}, which configure_optimizers of {module} makes; the "
        f"full learning rate is {shown}."
    )


def schedulers_on(trainer: pl.Trainer, optimizer: Optimizer) -> list[Any]:
    """Return the schedulers of an optimizer, for a callback that adds groups to it.

    Args:
        trainer: The trainer, in ``on_fit_start``.
        optimizer: One of its optimizers.

    Returns:
        Without those that a schedule will replace, whose turn comes later: they are removed now.

    Raises:
        ScheduleError: As :func:`take_the_place`.
    """
    configs = trainer.strategy.lr_scheduler_configs
    if not any(isinstance(config.scheduler, MultiplierLR) for config in configs):
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if getattr(callback, "replace", False) is True and hasattr(callback, "multiplier"):
                take_the_place(callback, trainer, trainer.lightning_module.automatic_optimization)
    found = [config.scheduler for config in trainer.strategy.lr_scheduler_configs]
    return [scheduler for scheduler in found if _is_on(scheduler, optimizer)]


def every_scheduler(schedulers: Any) -> Iterator[Any]:
    """Yield schedulers, and those within others (``SequentialLR``, ``ChainedScheduler``)."""
    for scheduler in schedulers:
        yield scheduler
        yield from every_scheduler(getattr(scheduler, "_schedulers", ()))


class OwnStep:
    """A replacement for a module's ``lr_scheduler_step``, which knows how its own are stepped.

    Such an override is for another kind of scheduler (timm's take the epoch); ours count steps.

    Args:
        pl_module: The module.
    """

    def __init__(self, pl_module: pl.LightningModule) -> None:
        self.module = pl_module

    def __call__(self, scheduler: Any, metric: Any) -> None:
        """Step a scheduler."""
        if isinstance(scheduler, MultiplierLR):
            scheduler.step()
        else:
            type(self.module).lr_scheduler_step(self.module, scheduler, metric)

    def put(self) -> None:
        """Stand in for the method of a module that overrides it."""
        own = getattr(type(self.module), _STEP, None)
        if own is not None and not own.__module__.startswith(_LIGHTNING):
            self.module.__dict__.setdefault(_STEP, self)

    def take_away(self) -> None:
        """Give the module its own method back."""
        if self.module.__dict__.get(_STEP) is self:
            del self.module.__dict__[_STEP]


def _is_on(scheduler: Any, optimizer: Optimizer) -> bool:
    return getattr(scheduler, "optimizer", None) is optimizer


def _at_full_rate(optimizer: Optimizer, schedulers: list[Any]) -> None:
    """Give each group the rate that its scheduler starts from, or rises to."""
    for number, group in enumerate(optimizer.param_groups):
        full = group.get("initial_lr", group["lr"])
        for scheduler in schedulers:
            if isinstance(scheduler, CyclicLR):
                full = scheduler.max_lrs[number]
            elif isinstance(scheduler, OneCycleLR):
                full = group["max_lr"]
            else:
                continue
            for key in ("momentum", "betas"):  # which they move against the rate
                if getattr(scheduler, "cycle_momentum", False) and key in optimizer.defaults:
                    group[key] = optimizer.defaults[key]
        group["initial_lr"] = full.clone() if isinstance(full, Tensor) else full
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(full)  # a captured or compiled step reads this very tensor
        else:
            group["lr"] = full
