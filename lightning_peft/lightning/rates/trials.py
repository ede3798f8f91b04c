"""One rate: short runs, one for each fold, and the loss on what they did not see."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lightning_peft.errors import DataError
from lightning_peft.evaluation.calibration import fit_temperature
from lightning_peft.lightning.callbacks.finite import FiniteLoss, NonFiniteLossError
from lightning_peft.lightning.modules.classifier import ClassifierModule
from lightning_peft.lightning.modules.tasks import task_loss
from lightning_peft.lightning.namespace import pl
from lightning_peft.lightning.rates.folds import Fold

__all__ = ["Build", "RateTrial", "tried"]

SPEAKERS = ("lightning.pytorch", "pytorch_lightning", "lightning_peft")

Build = Callable[[float], tuple[pl.LightningModule, Sequence[pl.Callback]]]
"""Returns a new module, and new callbacks, for a rate."""


@dataclasses.dataclass(frozen=True)
class RateTrial:
    """What short runs with a rate came to.

    Attributes:
        rate: The learning rate.
        loss: The loss on the held-out samples; infinite if a run diverged. That of a classifier is
            the cross entropy at the temperature that suits these samples best.
        metrics: The means over the folds of what the validation logged.
        first: The mean training loss of the first five steps; NaN if the module returns none.
        last: That of the last five.
        each: The loss of each held-out sample of a classifier, ``(N,)``.
    """

    rate: float
    loss: float
    metrics: Mapping[str, float]
    first: float
    last: float
    each: Tensor | None = dataclasses.field(default=None, repr=False, compare=False)

    def is_better(self, other: RateTrial) -> bool:
        """Whether the loss is lower than another by more than the noise that can be told.

        That is one standard error of the mean difference over the held-out samples, which are the
        same ones; nothing where a module has one loss for all.
        """
        if self.each is None or other.each is None:
            return self.loss < other.loss
        less = other.each - self.each
        error = less.std() / math.sqrt(len(less)) if len(less) > 1 else 0.0
        return bool(less.mean() > error)


class _Losses(pl.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        found = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if found is not None:
            self.values.append(float(found))


def tried(
    build: Build,
    rate: float,
    folds: Sequence[Fold],
    *,
    steps: int,
    seed: int,
    monitor: str,
    trainer: Mapping[str, Any],
) -> RateTrial:
    """Train with a rate on all folds but one, for each, and measure on that one.

    Args:
        build: Makes the module and its callbacks.
        rate: The rate.
        folds: The folds.
        steps: Optimizer steps of a run.
        seed: Seed of each run.
        monitor: The metric of the validation that is the loss of a module other than a classifier.
        trainer: Arguments of the trainer.

    Returns:
        The trial.

    Raises:
        DataError: If the validation does not log the metric.
    """
    first: list[float] = []
    last: list[float] = []
    found: list[Any] = []
    logged: dict[str, list[float]] = {}
    for fold in folds:
        with _seeded(seed), _quiet():
            module, callbacks = build(rate)
            losses, data = _Losses(), fold.data()
            run = pl.Trainer(
                **{
                    "devices": 1,
                    "logger": False,
                    "enable_checkpointing": False,
                    "enable_progress_bar": False,
                    "enable_model_summary": False,
                    "num_sanity_val_steps": 0,
                    "max_epochs": -1,
                    **trainer,
                    "max_steps": steps,
                    "limit_val_batches": 0,
                    "callbacks": [*callbacks, FiniteLoss(), losses],
                }
            )
            try:
                run.fit(module, data)
            except NonFiniteLossError:
                return RateTrial(rate, math.inf, {}, _mean(losses.values[:5]), math.nan)
            first += losses.values[:5]
            last += losses.values[-5:]
            run.limit_val_batches = 1.0
            found.append(_measured(run, module, data, monitor))
            for name, value in run.callback_metrics.items():
                logged.setdefault(name, []).append(float(value))
    metrics = {name: statistics.fmean(values) for name, values in logged.items()}
    loss, each = _pooled(found)
    return RateTrial(rate, loss, metrics, _mean(first), _mean(last), each)


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def _measured(run: pl.Trainer, module: Any, data: Any, monitor: str) -> Any:
    if isinstance(module, ClassifierModule):
        return (*module.validated(run, data), module.task)
    (metrics,) = run.validate(module, data, verbose=False) or [{}]
    if monitor not in metrics:
        raise DataError(
            f"Expected validation_step of {type(module).__name__} to log '{monitor}', by which the "
            f"rate is found, got {', '.join(metrics) or 'nothing'}: name one, monitor=..."
        )
    return float(metrics[monitor])


def _pooled(found: Sequence[Any]) -> tuple[float, Tensor | None]:
    """Return the loss over all folds, and that of each sample if it is known."""
    if isinstance(found[0], float):
        value = statistics.fmean(found)
        return (value if math.isfinite(value) else math.inf), None
    outputs = torch.cat([outputs for outputs, *_ in found]).double()
    targets = torch.cat([targets for _, targets, _ in found])
    task = found[0][-1]
    if not outputs.isfinite().all():
        return math.inf, None
    # what a rate is worth is not its confidence, which a temperature mends
    scaled = outputs / fit_temperature(outputs, targets, task)
    each = torch.stack(
        [task_loss(task, scaled[i : i + 1], targets[i : i + 1]) for i in range(len(scaled))]
    )
    return float(each.mean()), each


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed everything inside the block, and leave the random states as they were."""
    before = {name: os.environ.get(name) for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")}
    with pl.utilities.seed.isolate_rng():
        try:
            pl.seed_everything(seed, workers=True, verbose=False)
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the short runs say to themselves: the run that follows says it again."""
    loggers = [logging.getLogger(name) for name in SPEAKERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
