"""One training run, with the package as anybody would use it."""

from __future__ import annotations

import csv
import os
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

import lightning_peft as lp
from benchmarks.evidence.methods import Setting
from benchmarks.evidence.models import LITE, encoder_folder, lite_weights, make, sentence_model
from benchmarks.evidence.tasks import TESTED, Task
from benchmarks.quiet import quiet

__all__ = [
    "METRICS",
    "RECIPE",
    "WORK",
    "Losses",
    "bare_trainer",
    "data_of",
    "module_of",
    "train",
]

WORK = Path("build/evidence")

_CELLS = {"steps": 60, "batch": 16, "pixels": 112, "tested": TESTED, "seeds": 5, "head": 2}

RECIPE: dict[str, dict[str, int]] = {
    "cells": _CELLS,
    "types": _CELLS,
    "reviews": {"steps": 60, "batch": 8, "tokens": 96, "seeds": 5},
}
"""What all runs have in common. Head 2 starts as ``nn.Linear`` does; head 1, which was
timm's own, had weights 25 times as large."""

EPOCHS = 6
"""Of equal length, so that LP-FT can begin its second part in the middle."""

METRICS = ("accuracy", "balanced_accuracy", "f1", "auroc", "ece", "loss")


class Losses(pl.Callback):
    """Keep the loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.values.append(float(outputs["loss"]))


def train(
    task: Task,
    method: str,
    setting: Setting,
    drawn: Sequence[int],
    measured: Sequence[int],
    *,
    seed: int,
    split: str,
    further: Sequence[int] = (),
    steps: int | None = None,
    begin: Callable[[pl.LightningModule], None] | None = None,
) -> dict[str, Any]:
    """Train once and measure.

    Args:
        task: The task.
        method: A name of :func:`trained_methods`.
        setting: Its setting.
        drawn: The labelled items to train on.
        measured: The items to measure on.
        seed: Seed of the head, of the order of batches and of the augmentation.
        split: ``"test"``, or ``"val"`` in cross-validation.
        further: Items from elsewhere to measure on as well.
        steps: Steps of training, if not those of the recipe.
        begin: Changes the classifier before it is trained.

    Returns:
        The metrics, the losses, and the costs.
    """
    quiet()
    recipe = RECIPE[task.name]
    steps = recipe["steps"] if steps is None else steps
    pl.seed_everything(seed, verbose=False)
    data = data_of(task, drawn, measured, split, seed=seed, steps=steps)
    module = module_of(task, method, setting)
    if begin is not None:
        begin(module)
    losses = Losses()
    costs = lp.EfficiencyMonitor(flops=False, verbose=False)
    trainer = bare_trainer(
        steps,
        [*callbacks_of(method, setting), lp.WarmupCosine(warmup=0.1), losses, costs],
        limit_val_batches=0 if split == "test" else 1.0,
        check_val_every_n_epoch=10**6,
    )
    before, cpu, wall = _resident(), time.process_time(), time.perf_counter()
    try:
        trainer.fit(module, data)
        stopped = ""
    except lp.NonFiniteLossError as error:
        stopped = str(error).partition("\n")[0]
    figures = {
        "cpu_seconds": round(time.process_time() - cpu, 3),
        "seconds": round(time.perf_counter() - wall, 3),
        "extra_bytes": max(0, _peak() - before),
        **{
            name: costs.report.get(name)
            for name in ("trainable_parameters", "total_parameters", "step_seconds",
                         "checkpoint_bytes", "optimizer_state_bytes")
        },
    }  # fmt: skip
    found = (trainer.test if split == "test" else trainer.validate)(module, data, verbose=False)[0]
    elsewhere = {}
    if further:
        other = data_of(task, drawn, further, "test", seed=seed, steps=steps)
        elsewhere = trainer.test(module, other, verbose=False)[0]
    kept = losses.values
    return {
        **{name: found.get(f"{split}/{name}") for name in METRICS if f"{split}/{name}" in found},
        **{f"elsewhere_{n}": v for n in METRICS if (v := elsewhere.get(f"test/{n}")) is not None},
        "first_loss": statistics.fmean(kept[:5]) if kept else None,
        "last_loss": statistics.fmean(kept[-5:]) if kept else None,
        "largest_loss": max(kept) if kept else None,
        "stopped": stopped,
        "steps": len(kept),
        **figures,
        "all_cpu_seconds": round(time.process_time() - cpu, 3),
    }


def bare_trainer(steps: int, callbacks: Sequence[pl.Callback], **more: Any) -> pl.Trainer:
    """Return a trainer on the CPU that writes and prints nothing.

    Args:
        steps: Steps of training.
        callbacks: Its callbacks.
        **more: Other arguments of the trainer.
    """
    options: dict[str, Any] = {"enable_checkpointing": False, **more}
    return pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        devices=1,
        gradient_clip_val=1.0,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        default_root_dir=WORK / "logs" / str(os.getpid()),
        callbacks=list(callbacks),
        **options,
    )


def callbacks_of(method: str, setting: Setting) -> list[Any]:
    """Return the callbacks that make a method of a classifier that trains everything."""
    if method == "lp_ft":
        stage = lp.Stage(epoch=EPOCHS // 2, layers="all", lr=setting.rate)
        return [lp.BackboneFreeze(unfreeze=[stage], batchnorm=setting.batchnorm)]
    if method == "linear_probe":
        return [lp.PEFT("linear_probe", backbone_dropout="eval"), lp.FeatureCache()]
    if method == "scratch":
        return [lp.PEFT("full")]
    name, _, tuner = method.partition(":")
    if tuner:
        return [lp.PEFT(lp.HF(tuner, **setting.method))]
    return [lp.PEFT(name, batchnorm=setting.batchnorm, **setting.method)]


def module_of(task: Task, method: str, setting: Setting) -> pl.LightningModule:
    """Build the classifier."""
    rate = 1e-2 if method == "lp_ft" else setting.rate  # of its head; the rest has the setting's
    options: dict[str, Any] = {"lr": rate, **setting.module}
    pretrained = method != "scratch"
    if task.name == "reviews":
        return lp.TextClassifier(
            sentence_model(len(task.classes), pretrained), len(task.classes), **options
        )
    weights = {"pretrained_cfg_overlay": {"file": str(lite_weights(WORK / "weights"))}}
    return lp.ImageClassifier(
        LITE,
        len(task.classes),
        pretrained=pretrained,
        backbone_kwargs=weights if pretrained else None,
        **options,
    )


def data_of(
    task: Task,
    drawn: Sequence[int],
    measured: Sequence[int],
    split: str,
    *,
    seed: int,
    steps: int,
    held: Sequence[int] = (),
    **changes: Any,
) -> pl.LightningDataModule:
    """Build the data of a run: some items for training, others for measuring.

    Args:
        task: The task.
        drawn: The items to train on.
        measured: The items to measure on.
        split: ``"test"`` or ``"val"``: what the measured items are.
        seed: Seed of the order and of the augmentation.
        steps: Steps of the run.
        held: Items of the split ``"val"`` besides.
        **changes: Other arguments of the data module.

    Returns:
        The data.
    """
    recipe = RECIPE[task.name]
    rows = [(i, "train") for i in drawn] + [(i, "val") for i in held]
    rows += [(i, split) for i in measured]
    options: dict[str, Any] = {
        "seed": seed,
        "batch_size": recipe["batch"],
        "eval_batch_size": 32,
        "steps_per_epoch": max(1, steps // EPOCHS),
        "num_workers": 0,
        "val_fraction": 0.0,
    }
    if task.name == "reviews":
        options |= {"backbone": str(encoder_folder()), "max_length": recipe["tokens"]}
        return lp.TextDataModule(
            texts=[task.items[i] for i, _ in rows],
            labels=[task.classes[task.labels[i]] for i, _ in rows],
            splits=[name for _, name in rows],
            **options | changes,
        )
    from lightning_peft.lightning.datamodules.folder import ImageFolderDataModule

    file = make(WORK / "lists" / f"{os.getpid()}.csv")
    root = Path(task.items[0]).parent
    with file.open("w", encoding="utf-8", newline="") as out:
        lines = csv.writer(out)
        lines.writerow(["file", "label", "split"])
        lines.writerows(
            [Path(task.items[i]).name, task.classes[task.labels[i]], name] for i, name in rows
        )
    options |= {
        "backbone": LITE,
        "image_size": recipe["pixels"],
        "augment": lp.Augment(flip=True),
        "flip_safe": True,  # a mirrored cell is a cell
        "verify": "none",
        "cache": WORK / "decoded",
    }
    return ImageFolderDataModule(root, labels=file.resolve(), **options | changes)


def _resident() -> int:
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * resource.getpagesize()


def _peak() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
