"""The first lines of a single run: what is trained on what, and when it validates."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from lightning_peft.cli.config.proposals import AUTO, choose
from lightning_peft.cli.jobs.backbone_facts import told
from lightning_peft.cli.jobs.task import dataset_of
from lightning_peft.lightning.namespace import pl

if TYPE_CHECKING:
    from lightning_peft.cli.jobs.parts import Parts

__all__ = ["StartLines", "start_lines"]

_DONE = {"train": "to train", "val": "to validate", "test": "to test"}


class StartLines(pl.Callback):
    """Prints lines when nothing can be refused any more, before the bar is drawn.

    Attributes:
        lines: The lines.
    """

    lines: tuple[str, ...] = ()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print them, in one process."""
        if trainer.is_global_zero:
            for line in self.lines:
                print(line, file=sys.stderr)


def start_lines(cfg: DictConfig, parts: Parts) -> Iterator[str]:
    """Yield what a person should know before the training begins.

    Args:
        cfg: The composed config of the job.
        parts: What it will train.
    """
    from hydra.core.hydra_config import HydraConfig

    chosen = HydraConfig.get().runtime.choices.get("model") if HydraConfig.initialized() else None
    if chosen == AUTO:
        yield choose()[1]
    facts = told(parts.backbone)
    yield f"{cfg.name} on {parts.backbone['name']}" + (f" ({facts})" if facts else "")
    if counts := _counts(parts.datamodule):
        yield f"{counts}; {_validates(parts.trainer)}"


def _counts(datamodule: Any) -> str:
    try:
        found = {split: len(dataset_of(datamodule, split)) for split in _DONE}
    except Exception:  # data of the user's own, or without a test split
        return ""
    noun = "texts" if hasattr(datamodule, "texts") else "images"
    counts = [f"{count:,} {_DONE[split]}" for split, count in found.items() if count]
    return f"{noun}: {', '.join(counts)}"


def _validates(trainer: Any) -> str:
    if not trainer.limit_val_batches:
        return "no validation"
    if trainer.check_val_every_n_epoch is None and isinstance(trainer.val_check_interval, int):
        steps = trainer.val_check_interval // trainer.accumulate_grad_batches
        return f"validates every {steps:,} steps"
    epochs = trainer.check_val_every_n_epoch
    return "validates each epoch" if epochs == 1 else f"validates every {epochs} epochs"
