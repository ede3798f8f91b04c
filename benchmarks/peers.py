"""Time training steps of other trainers, each with its own loop.

The time is that between the starts of two batches of one epoch, including the optimizer and the
loader. `accelerate` (for the Trainer of transformers) and `finetuning-scheduler` are the extra
`bench`; a trainer that is not installed is left out with a message.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import itertools
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import timm
import torch
from steps import with_lp, with_peft
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

STEPS = 3
"""Steps of a round that are timed; two before them are not."""


class Classifier(L.LightningModule):
    """A network with cross-entropy, and AdamW for what is trained."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss."""
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the metric that finetuning-scheduler's callbacks monitor."""
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW for what is trained."""
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-4)


class Clock(L.Callback):
    """Notes when batches start."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.starts: list[float] = []

    def on_train_batch_start(self, *args: Any) -> None:
        """Record the time."""
        self.starts.append(self.now())


def step_seconds(starts: list[float]) -> float:
    """Return the median time between two starts, without the first two steps."""
    return statistics.median(b - a for a, b in itertools.pairwise(starts[2:]))


def lightning_steps(
    module: L.LightningModule,
    loader: DataLoader,
    *callbacks: L.Callback,
    now: Callable[[], float] = time.perf_counter,
) -> float:
    """Train for one epoch under Lightning.

    Args:
        module: The module.
        loader: Its batches.
        *callbacks: Of the trainer.
        now: The clock.

    Returns:
        The seconds of a step.
    """
    clock = Clock(now)
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": 1,
    }
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # advice about workers and such
        trainer = L.Trainer(callbacks=[clock, *callbacks], default_root_dir=folder, **quiet)
        trainer.fit(module, loader)
    return step_seconds(clock.starts)


def hugging_face(
    net: nn.Module, data: TensorDataset, batch: int, now: Callable[[], float]
) -> float:
    """Train for a few steps under the Trainer of transformers."""
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
    from transformers.modeling_outputs import ImageClassifierOutput

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, pixel_values: Tensor, labels: Tensor) -> ImageClassifierOutput:
            logits = self.net(pixel_values)
            return ImageClassifierOutput(nn.functional.cross_entropy(logits, labels), logits)

    class Started(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            starts.append(now())

    starts: list[float] = []
    rows = [{"pixel_values": image, "labels": label} for image, label in data]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=len(data) // batch,
            per_device_train_batch_size=batch,
            learning_rate=1e-4,
            max_grad_norm=0.0,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = Trainer(WithLoss(), arguments, train_dataset=rows, callbacks=[Started()])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return step_seconds(starts)


def scheduler(net: nn.Module, loader: DataLoader, now: Callable[[], float]) -> float:
    """Train the head and the last quarter of the blocks in full, by finetuning-scheduler."""
    from finetuning_scheduler import FinetuningScheduler

    first = 3 * len(net.blocks) // 4  # type: ignore[arg-type]
    starts = tuple(f"blocks.{n}." for n in range(first, len(net.blocks)))  # type: ignore[arg-type]
    names = [
        f"net.{n}" for n, _ in net.named_parameters() if n.startswith((*starts, "norm", "head"))
    ]
    with tempfile.TemporaryDirectory() as folder:
        callback = FinetuningScheduler(
            ft_schedule={0: {"params": names, "max_transition_epoch": 1}},
            epoch_transitions_only=True,
            restore_best=False,
            logging_level=logging.ERROR,
            log_dir=folder,
        )
        return lightning_steps(Classifier(net), loader, callback, now=now)


def peers(
    options: argparse.Namespace,
    images: Tensor,
    labels: Tensor,
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, Callable[[], float]]:
    """Prepare the other trainers for the same model and the same images.

    Args:
        options: As for ``steps.variants``.
        images: One batch.
        labels: Its class numbers.
        now: The clock.

    Returns:
        For each installed peer, a function that returns the seconds of a step.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    times = STEPS + 3
    data = TensorDataset(images.repeat(times, 1, 1, 1), labels.repeat(times))
    loader = DataLoader(data, len(images))
    settings = getattr(options, "model_settings", {})
    base = timm.create_model(options.backbone, num_classes=10, **settings)
    ours, theirs = Classifier(with_lp(base, options)), Classifier(with_peft(base, options))
    hf, part = with_peft(base, options), copy.deepcopy(base)
    found: dict[str, Callable[[], float]] = {
        "Lightning, lightning-peft": lambda: lightning_steps(ours, loader, now=now),
        "Lightning, peft": lambda: lightning_steps(theirs, loader, now=now),
        "transformers Trainer, peft": lambda: hugging_face(hf, data, len(images), now),
        "finetuning-scheduler, last quarter in full": lambda: scheduler(part, loader, now),
    }
    for name, package in _absent():
        print(f"{name}: left out, {package} is not installed (pip install 'lightning-peft[bench]')")
        found.pop(name)
    return found


def _absent() -> Iterator[tuple[str, str]]:
    needs = {
        "transformers Trainer, peft": "accelerate",
        "finetuning-scheduler, last quarter in full": "finetuning_scheduler",
    }
    for name, package in needs.items():
        if importlib.util.find_spec(package) is None:
            yield name, package
