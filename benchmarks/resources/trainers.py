"""Steps of the trainers of Lightning and of transformers, and Lightning's checkpoints."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_peft as lp
from benchmarks.resources.models import MODELS, Batch, loss_of
from benchmarks.resources.variants import build, method_of, rates

__all__ = ["checkpoint_bytes", "seconds_of_trainer"]

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Module(L.LightningModule):
    """A network with its loss, and AdamW for what is trained."""

    def __init__(self, net: nn.Module, rate: float) -> None:
        super().__init__()
        self.net, self.rate = net, rate

    def training_step(self, batch: Batch, index: int) -> Tensor:
        return loss_of(self.net, batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=self.rate)


class Unchanged(Module):
    """The same, whose step costs nothing: all gradients are zero."""

    def training_step(self, batch: Batch, index: int) -> Tensor:
        return sum(0 * p.sum() for p in self.parameters() if p.requires_grad)


class Ends(L.Callback):
    """Notes when batches end."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, *args: Any) -> None:
        self.times.append(time.process_time())


def checkpoint_bytes(name: str, base: nn.Module, variant: str) -> int:
    """Return the size of what Lightning writes to go on from, after a step.

    Methods of this package are those of the callback ``lp.PEFT``.
    """
    own = variant != "full" and not variant.startswith("peft ")
    module = Unchanged(build(name, base, "full" if own else variant), rates(variant))
    callbacks = [lp.PEFT(method_of(name, variant))] if own else []
    model = MODELS[name]
    batch = model.batch(*model.sizes, torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(max_steps=1, callbacks=callbacks, default_root_dir=folder, **QUIET)
        trainer.fit(module, DataLoader([batch], batch_size=None))
        path = Path(folder, "one.ckpt")
        trainer.save_checkpoint(path)
        return path.stat().st_size


def seconds_of_trainer(
    name: str, base: nn.Module, variant: str, batch: Batch
) -> Callable[[], float]:
    """Return what trains for two steps and gives the time from the end of one to that of the next.

    Args:
        name: The model.
        base: It, without an adapter.
        variant: The trainer and what it trains.
        batch: The batch of both steps.
    """
    trainer, _, what = variant.partition(", ")
    if trainer == "Lightning":
        module = Module(build(name, base, "full"), rates(what))
        return lambda: _by_lightning(module, name, what, batch)
    net = build(name, base, what)
    return lambda: _by_transformers(net, what, batch)


def _by_lightning(module: Module, name: str, what: str, batch: Batch) -> float:
    ends = Ends()
    with tempfile.TemporaryDirectory() as folder:
        callbacks = [lp.PEFT(method_of(name, what)), ends]
        trainer = L.Trainer(max_steps=2, callbacks=callbacks, default_root_dir=folder, **QUIET)
        trainer.fit(module, DataLoader([batch, batch], batch_size=None))
    first, second = ends.times
    return second - first


def _by_transformers(net: nn.Module, what: str, batch: Batch) -> float:
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    times: list[float] = []

    class Noted(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            times.append(time.process_time())

    count = len(batch["labels"])
    rows = [{key: value[i] for key, value in batch.items()} for i in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=2,
            per_device_train_batch_size=count,
            learning_rate=rates(what),
            lr_scheduler_type="constant",
            max_grad_norm=0.0,  # as in the other loops, nothing is clipped
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(net, arguments, train_dataset=rows + rows, callbacks=[Noted()])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    first, second = times
    return second - first
