"""Whether the training loss falls: every method of ``conf/method``, at its own rate."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

import lightning_peft as lp
from benchmarks.evidence.train import Losses, bare_trainer
from benchmarks.quiet import quiet
from benchmarks.rates.networks import NETWORKS

__all__ = ["METHODS", "STEPS", "falls"]

STEPS = 30
"""Six epochs in which LP-FT trains the head for two."""

CONF = Path(lp.__file__).parents[1] / "conf"

METHODS = tuple(
    sorted(
        path.stem
        for path in (CONF / "method").glob("*.yaml")
        if "???" not in path.read_text(encoding="utf-8")
    )
)
"""All but those that have to be told which tuner, or which methods."""


def falls(network: str, method: str, tasks: Mapping[str, Any]) -> dict[str, Any]:
    """Train for a few steps as ``lightning-peft method=...`` does, and keep the losses.

    Args:
        network: One of :data:`NETWORKS`.
        method: A choice of ``conf/method``.
        tasks: The tasks that are loaded.

    Returns:
        The rate, the mean of the first and the last five losses, and why it stopped or was refused.
    """
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    quiet()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [f"method={method}", "name=falls", "output_dir=."])
    pl.seed_everything(0, verbose=False)
    where, began, losses = NETWORKS[network], time.process_time(), Losses()
    data = where.data(tasks, 0, steps=STEPS)
    module = where.module(tasks, float(cfg.lr), pretrained=cfg.model.pretrained)
    callbacks = [
        instantiate(cfg.callbacks[name], _convert_="all")
        for name in ("peft", "schedule", "freeze")
        if name in cfg.callbacks
    ]
    trainer = bare_trainer(STEPS, [*callbacks, lp.FiniteLoss(), losses], limit_val_batches=0)
    told = ""
    try:
        trainer.fit(module, data)
    except (lp.MethodError, lp.TargetError, lp.NonFiniteLossError) as error:
        told = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    values = losses.values
    return {
        "rate": float(cfg.lr),
        "first_loss": statistics.fmean(values[:5]) if values else None,
        "last_loss": statistics.fmean(values[-5:]) if values else None,
        "largest_loss": max(values) if values else None,
        "told": told,
        "balanced_accuracy": 0.0,  # nothing is measured
        "seconds": round(time.process_time() - began, 2),
    }
