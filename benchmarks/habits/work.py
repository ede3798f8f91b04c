"""One run: with some of the habits, or the ranking of a model and its fine-tuning."""

from __future__ import annotations

import copy
import functools
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import nn

import lightning_peft as lp
from benchmarks.evidence.baselines import Body
from benchmarks.evidence.models import LITE, lite_weights, make, sentence_model
from benchmarks.evidence.plan import Job
from benchmarks.evidence.tasks import Task, draw, folds, load
from benchmarks.evidence.train import METRICS, RECIPE, WORK, Losses, bare_trainer, data_of
from benchmarks.habits.candidates import build, data_changes
from benchmarks.habits.recipes import COMMON, REGULAR, habits_of
from benchmarks.quiet import quiet
from lightning_peft.ranking import SCORES, linear_probe
from lightning_peft.ranking.features import extract

__all__ = ["fine_tune", "measure", "rank"]

SHORT = ("accuracy", "balanced_accuracy", "f1")

PARTS = 5
"""The checkpoint is chosen on one part of five of the labelled items."""


def measure(job: Job, setting: int, tasks: Mapping[str, Any]) -> dict[str, Any]:
    """Run a job and return its line, without the identity of the job."""
    task = tasks[job.task] if job.task in tasks else load(job.task)
    drawn = draw(task, job.budget, job.seed)
    quiet()
    pl.seed_everything(job.seed, verbose=False)
    found = (rank if job.kind == "rank" else fine_tune)(task, job.method, drawn, seed=job.seed)
    most = Counter(task.labels[i] for i in task.test).most_common(1)[0][1]
    return {"labelled": len(drawn), "majority": most / len(task.test), **found}


def fine_tune(
    task: Task, recipe: str, drawn: Sequence[int], *, seed: int, steps: int | None = None
) -> dict[str, Any]:
    """Train LoRA with the habits of a recipe and measure.

    Args:
        task: The task.
        recipe: One of :func:`~benchmarks.habits.recipes.recipes`.
        drawn: The labelled items; one of five of them chooses the checkpoint, with that habit.
        seed: Seed of the order of batches and of the augmentation.
        steps: Steps of training, if not those of the recipe.

    Returns:
        The metrics, and the time.
    """
    habits = habits_of(recipe, task.name)
    held: Sequence[int] = ()
    if "evaluate" in habits:
        drawn, held = folds(task, drawn, PARTS)[0]
    changes: dict[str, Any] = {}
    if task.name == "cells":
        changes["augment"] = "light" if "augment" in habits else "none"
    callbacks: list[Any] = [_adapter(habits)]
    if "schedule" in habits:
        callbacks.append(lp.WarmupCosine(warmup=0.1))
    module = _classifier(task, habits)
    given = {"seed": seed, "steps": steps, "elsewhere": task.elsewhere}
    return _run(task, module, callbacks, drawn, held, changes, **given)


def rank(
    task: Task, name: str, drawn: Sequence[int], *, seed: int, steps: int | None = None
) -> dict[str, Any]:
    """Score a candidate on the labelled items, then fine-tune it on them with LoRA and measure.

    Args:
        task: The task.
        name: The candidate.
        drawn: The labelled items.
        seed: Seed of the order of batches and of the augmentation.
        steps: Steps of training, if not those of the recipe.

    Returns:
        The scores, ``score_`` before their names, the metrics, and the time.
    """
    model, changes = build(task, name), data_changes(task.name, name)
    scores = _scores(task, model, drawn, changes, seed)
    kind: Any = lp.ImageClassifier if task.name == "cells" else lp.TextClassifier
    module = kind(model, len(task.classes), lr=COMMON["rate"])
    callbacks = [lp.PEFT("lora"), lp.WarmupCosine(warmup=0.1)]
    return scores | _run(task, module, callbacks, drawn, (), changes, seed=seed, steps=steps)


def _scores(
    task: Task, model: nn.Module, drawn: Sequence[int], changes: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    # as `rank` sees the items: prepared as for an evaluation
    data: Any = data_of(task, drawn, task.test[:1], "test", seed=seed, steps=6, **changes)
    data.prepare_data()
    data.setup("fit")
    body = Body(copy.deepcopy(model))
    features = extract(body, data.plain_dataloader("train"), "cpu")
    found = {f"score_{n}": f(features.values, features.labels) for n, f in SCORES.items()}
    return {
        "score_probe": linear_probe(features.values, features.labels).accuracy,
        **found,
        "score_parameters": sum(p.numel() for p in body.parameters()),
    }


def _adapter(habits: frozenset[str]) -> Any:
    dropout = "train" if "regular" in habits else "eval"
    rate = REGULAR["dropout"] if "regular" in habits else 0.0
    return lp.PEFT("lora", backbone_dropout=dropout, dropout=rate)


def _classifier(task: Task, habits: frozenset[str]) -> pl.LightningModule:
    regular = "regular" in habits
    options: dict[str, Any] = {"lr": COMMON["rate"], "weight_decay": 0.0}
    if regular:
        options |= {name: REGULAR[name] for name in ("label_smoothing", "weight_decay")}
    pretrained, classes = "model" in habits, len(task.classes)
    if task.name == "reviews":  # its dropout is the encoder's own
        return lp.TextClassifier(sentence_model(classes, pretrained), classes, **options)
    if pretrained:
        file = str(lite_weights(WORK / "weights"))
        options["backbone_kwargs"] = {"pretrained_cfg_overlay": {"file": file}}
    rate = REGULAR["dropout"] if regular else 0.0
    return lp.ImageClassifier(LITE, classes, pretrained=pretrained, head_dropout=rate, **options)


def _run(
    task: Task,
    module: pl.LightningModule,
    callbacks: Sequence[Any],
    drawn: Sequence[int],
    held: Sequence[int],
    changes: Mapping[str, Any],
    *,
    seed: int,
    steps: int | None,
    elsewhere: Sequence[int] = (),
) -> dict[str, Any]:
    steps = RECIPE[task.name]["steps"] if steps is None else steps
    common: dict[str, Any] = {"seed": seed, "steps": steps, **changes}
    data = data_of(task, drawn, task.test, "test", held=held, **common)
    losses = Losses()
    make(WORK / "checkpoints" / "one")
    cpu = time.process_time()
    with tempfile.TemporaryDirectory(dir=WORK / "checkpoints") as folder:
        kept = _checkpoints(Path(folder)) if held else {}
        trainer = bare_trainer(
            steps,
            [*callbacks, losses, *kept.values()],
            limit_val_batches=1.0 if held else 0,
            enable_checkpointing=bool(held),
        )
        try:
            trainer.fit(module, data)
            stopped = ""
        except lp.NonFiniteLossError as error:
            stopped = str(error).partition("\n")[0]
        found = _test(trainer, module, data)
        path = None
        if kept and not stopped:
            found, path = _chosen(trainer, module, data, kept, found)
        if elsewhere:
            other = data_of(task, drawn, elsewhere, "test", **common)
            away = _test(trainer, module, other, path)
            found |= {f"elsewhere_{name}": value for name, value in away.items()}
    values = losses.values
    return {
        **found,
        "first_loss": statistics.fmean(values[:5]) if values else None,
        "last_loss": statistics.fmean(values[-5:]) if values else None,
        "steps": len(values),
        "stopped": stopped,
        "all_cpu_seconds": round(time.process_time() - cpu, 3),
    }


def _checkpoints(folder: Path) -> dict[str, Any]:
    """Return what keeps the best weights by two measures of the held items, the first the habit."""
    keep = functools.partial(
        pl.callbacks.ModelCheckpoint, filename="{epoch}", save_weights_only=True
    )
    return {
        "": keep(folder / "score", monitor="val/balanced_accuracy", mode="max"),
        "by_loss_": keep(folder / "loss", monitor="val/loss", mode="min"),
    }


def _chosen(
    trainer: pl.Trainer, module: Any, data: Any, kept: Mapping[str, Any], last: dict[str, float]
) -> tuple[dict[str, Any], str]:
    """Return the test of the chosen weights, with those of the other choices, and their file."""
    tested = {trainer.current_epoch - 1: last}
    found: dict[str, Any] = {f"last_weights_{name}": last[name] for name in SHORT if name in last}
    for prefix, best in kept.items():
        path = best.best_model_path
        epoch = int(Path(path).stem.partition("=")[2])
        if epoch not in tested:
            tested[epoch] = _test(trainer, module, data, path)
        names = SHORT if prefix else METRICS
        found |= {f"{prefix}{n}": tested[epoch][n] for n in names if n in tested[epoch]}
        found |= {f"{prefix}epoch": epoch, f"{prefix}validated": float(best.best_model_score)}
    return found, kept[""].best_model_path


def _test(trainer: pl.Trainer, module: Any, data: Any, path: str | None = None) -> dict[str, float]:
    found = trainer.test(module, data, ckpt_path=path, verbose=False)[0]
    return {name: found[f"test/{name}"] for name in METRICS if f"test/{name}" in found}
