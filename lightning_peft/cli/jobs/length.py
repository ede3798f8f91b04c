"""How long a run will be, before it begins."""

from __future__ import annotations

from typing import Any, NamedTuple

from omegaconf import DictConfig

from lightning_peft.cli.config.errors import ConfigError

__all__ = ["Planned", "limited", "planned_steps"]


def limited(batches: int, limit: float | None) -> int:
    """Return how many batches are left by a limit of Lightning's trainer.

    Args:
        batches: Their number.
        limit: A number of batches, or as a float a part of them; None is no limit.
    """
    if limit is None:
        return batches
    return int(batches * limit) if isinstance(limit, float) else min(batches, limit)


class Planned(NamedTuple):
    """How long a run will be, in optimizer steps on one device.

    Attributes:
        total: Steps of the whole run; ``None`` if it ends only when somebody stops it.
        epoch: Steps of an epoch.
    """

    total: int | None
    epoch: int


def planned_steps(cfg: DictConfig, datamodule: Any, schedule: Any = None) -> Planned:
    """Return how many optimizer steps a run on one device will make.

    Args:
        cfg: The composed config.
        datamodule: The data, set up.
        schedule: The schedule, which may define the number itself.

    Returns:
        The steps.

    Raises:
        ConfigError: If the schedule needs a run with a length, and neither steps nor epochs are
            given.
    """
    trainer = cfg.trainer
    batches = limited(len(datamodule.train_dataloader()), trainer.get("limit_train_batches"))
    epoch = -(-batches // trainer.accumulate_grad_batches)
    if getattr(schedule, "total_steps", None):
        return Planned(int(schedule.total_steps), epoch)
    found = []
    if (trainer.get("max_steps") or -1) > 0:
        found.append(trainer.max_steps)
    if (trainer.get("max_epochs") or -1) > 0:
        found.append(trainer.max_epochs * epoch)
    if found:
        return Planned(int(min(found)), epoch)
    if schedule is not None and not schedule.needs_length():
        return Planned(None, epoch)
    raise ConfigError(
        ["the run has no length: set trainer.max_steps or trainer.max_epochs, or "
         "+schedule.total_steps"]
    )  # fmt: skip
