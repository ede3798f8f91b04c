"""Go on from a checkpoint of a run that was moved, or that is resumed otherwise than it was begun.

``ModelCheckpoint`` keeps absolute paths in the checkpoint, and forgets its best one if they are
those of another directory. A checkpoint in the directory of this very run belongs to it, wherever
the directory was then: its paths are given their present place.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.jobs.task import dataset_of
from lightning_peft.cli.runs.checkpoints import is_of_checkpoints, missing_best, rerooted
from lightning_peft.cli.runs.places import is_within
from lightning_peft.lightning.namespace import pl

__all__ = ["FACTS", "Resuming", "facts_of"]

FACTS = "lightning_peft_run"
"""The key of a checkpoint with the facts about its run that its config does not say."""


class Resuming(pl.Callback):
    """Gives the checkpoints of a run their present place when the run goes on.

    Args:
        directory: The directory of the run.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.facts: dict[str, Any] = {}
        self.when_it_goes_on: Callable[[], None] = _nothing

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Do what is done once nothing can be refused any more."""
        if trainer.is_global_zero:
            self.when_it_goes_on()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the facts about the run."""
        checkpoint[FACTS] = dict(self.facts)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Give the paths in the states of checkpoint callbacks their present place.

        Raises:
            ConfigError: If the best checkpoint is not there.
        """
        path = trainer.ckpt_path
        if path is None or not is_within(path, self.directory):
            return  # of another run: this one keeps the best of what it finds itself
        states = dict(checkpoint.get("callbacks") or {})
        problems: list[str] = []
        for callback in trainer.checkpoint_callbacks:
            state: Any = states.get(callback.state_key)
            place = getattr(callback, "dirpath", None)
            if not is_of_checkpoints(state) or place is None:
                continue
            problems += missing_best(state, Path(place), Path(path))
            states[callback.state_key] = rerooted(state, Path(place))
        if problems:
            raise ConfigError(problems)
        checkpoint["callbacks"] = states


def _nothing() -> None:
    pass


def facts_of(datamodule: Any, trainer: pl.Trainer) -> dict[str, Any]:
    """Return what a later start may have otherwise although its config is the same."""
    images = dataset_of(datamodule, "train")
    count = {} if images is None else {"labelled for training": len(images)}
    return {"ranks": trainer.world_size, **count}
