"""One run of a small model in a Lightning trainer."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

import lightning_peft as lp
from tests.small_models.models import Small, batch_of
from tests.wild.record import Record, make_recorder

__all__ = ["BATCHES", "EPOCHS", "Job", "fit"]

BATCHES, EPOCHS = 2, 4


class Job(L.LightningModule):
    """A module as people write them, which can die.

    Args:
        model: The model.
        stop_at: The step at which it dies.
    """

    def __init__(self, model: Any, stop_at: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.stop_at = stop_at

    def training_step(self, batch: Any, index: int) -> Any:
        """Return the model's own loss."""
        if self.global_step == self.stop_at:
            raise RuntimeError("stopped")
        return self.model(**batch).loss

    def configure_optimizers(self) -> Any:
        """Train what is to be trained."""
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)


def fit(
    model: Any,
    small: Small,
    words: dict[str, Any],
    folder: Path,
    stop_at: int | None = None,
    resumed: Path | None = None,
) -> tuple[Any, Record]:
    """Train a model with the one callback.

    Args:
        model: The model, not adapted.
        small: Its architecture.
        words: Settings beyond ``PEFT("lora")``.
        folder: Where the last checkpoint is.
        stop_at: The step at which the run dies.
        resumed: The checkpoint from which it goes on.

    Returns:
        The module and what the run did.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    L.seed_everything(3, verbose=False)
    record, module = Record(), Job(model, stop_at)
    saves = ModelCheckpoint(
        folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False
    )
    trainer = L.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
        callbacks=[lp.PEFT("lora", **words), saves, make_recorder(L.pytorch, record)],
    )  # fmt: skip
    trainer.fit(module, _data(small), ckpt_path=resumed)
    return module, record


def _data(small: Small) -> Any:
    return DataLoader([batch_of(small, seed) for seed in range(BATCHES)], batch_size=None)
