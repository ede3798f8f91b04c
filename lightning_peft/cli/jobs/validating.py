"""When a run validates, and how long it took.

With few labels an epoch is a step or two, and a validation after each would be most of the run.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.jobs.length import limited, planned_steps
from lightning_peft.lightning.namespace import pl

__all__ = ["Validations", "interval", "of_the_last_weights", "when_to_validate"]

SHARE = 5
"""Of this many parts of the training time, validation takes less than one."""


def interval(trained: float, validated: int, total: int | None) -> int:
    """Return after how many training batches to validate.

    A validation image costs no more than a training image, which has a backward pass as well, so
    five times as many training images between two validations keep these below a fifth. Where it
    can be, the interval divides the run, so that the last validation is at its end.

    Args:
        trained: Samples of a training batch.
        validated: Validation samples.
        total: Batches of the whole run; None if that is not known.

    Returns:
        The number of batches; that of the whole run if it is too short for the rule.

    >>> interval(trained=20, validated=207, total=250)
    62
    """
    least = int(SHARE * validated / trained) + 1
    if total is None:
        return least
    most = max(1, total // least)
    even = (count for count in range(most, most // 2, -1) if total % count == 0)
    return total // next(even, most)


def when_to_validate(cfg: DictConfig, datamodule: Any) -> dict[str, Any]:
    """Return the arguments of the trainer that say when to validate, where the config does not.

    An epoch that is long enough ends with a validation, and so does one whose length was chosen
    (``data.steps_per_epoch``).

    Args:
        cfg: The composed config of a job.
        datamodule: The data, set up; None if it has no validation split.
    """
    trainer = cfg.trainer
    none = {"limit_val_batches": 0} if datamodule is None else {}
    if "check_val_every_n_epoch" not in trainer or trainer.check_val_every_n_epoch is not None:
        return none
    each_epoch = {"check_val_every_n_epoch": 1, **none}
    if datamodule is None:
        return each_epoch
    chosen = trainer.get("val_check_interval") is not None
    if chosen or getattr(datamodule, "steps_per_epoch", None) is not None:
        return each_epoch
    try:
        training, validation = datamodule.train_dataloader(), datamodule.val_dataloader()
        batches = limited(len(training), trainer.get("limit_train_batches"))
        trained = len(training.dataset) / len(training)
        validated = limited(len(validation), trainer.get("limit_val_batches"))
        validated = min(validated * validation.batch_size, len(validation.dataset))
    except Exception:  # data of another kind, which the trainer asks once more
        return each_epoch
    if not validated or interval(trained, validated, None) <= batches:
        return each_epoch
    try:
        steps = planned_steps(cfg, datamodule).total
    except ConfigError:  # it ends by the clock, or its schedule says when
        steps = None
    total = None if steps is None else steps * trainer.accumulate_grad_batches
    return {
        "check_val_every_n_epoch": None,
        "val_check_interval": interval(trained, validated, total),
    }


def of_the_last_weights(node: Any, when: Mapping[str, Any]) -> dict[str, Any]:
    """Return the argument with which a checkpoint without a metric keeps the last weights.

    Lightning writes it with each validation, if these are not at the ends of epochs, and then not
    at the end of the run.

    Args:
        node: The config of a callback.
        when: As from :func:`when_to_validate`.
    """
    if when.get("check_val_every_n_epoch", 1) is not None:
        return {}
    if not str(node.get("_target_")).endswith(".ModelCheckpoint"):
        return {}
    chosen = ("monitor", "every_n_train_steps", "train_time_interval", "save_on_train_epoch_end")
    if any(node.get(name) is not None for name in chosen):
        return {}
    return {"save_on_train_epoch_end": True}


class Validations(pl.Callback):
    """Measures what the validations of a training cost.

    Attributes:
        count: How many there were.
        seconds: How long they took altogether.
    """

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0
        self._started: float | None = None

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._started = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        if self._started is not None:
            self.seconds += time.perf_counter() - self._started
            self.count += 1
            self._started = None
