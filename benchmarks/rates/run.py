"""Try the rates: ``python -m benchmarks.rates.run``; a second call goes on where it stopped.

--only lora full minilm    some networks, methods or kinds (choose, auto, falls)
--processes 2              runs at the same time, of one thread each
--list                     what is still to do, and about how long it takes
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

import lightning_peft as lp
from benchmarks.evidence.plan import Job, fits
from benchmarks.evidence.run import Runner, carry_out, options_of
from benchmarks.evidence.store import Store
from benchmarks.quiet import quiet
from benchmarks.rates import falls as falling
from benchmarks.rates.networks import LABELS, NETWORKS, STEPS
from lightning_peft.cli.config.auto_rate import start_of
from lightning_peft.lightning.rates.folds import Fold
from lightning_peft.lightning.rates.trials import RateTrial, tried

__all__ = ["RATES", "RESULTS", "jobs", "main", "measure"]

RESULTS = Path("benchmarks/results/rates.jsonl")

RATES = {
    "lora": (1e-4, 3e-4, 1e-3, 3e-3),
    "full": (1e-4, 3e-4, 1e-3, 3e-3),
    **dict.fromkeys(("bitfit", "linear_probe", "norm", "last_blocks"), (3e-4, 1e-3, 3e-3, 1e-2)),
}
"""The rates of each method."""

MOST = ("lora", "full")
"""The methods that are tried on all networks, and that searches are made for."""

LARGE = ("lite1", "lite2")
"""Networks that other methods are not tried on, nor searches made, for the time it takes."""

KINDS = ("choose", "auto", "falls")

FOLDS = 2
RECIPE = {"steps": STEPS, "labels": LABELS, "rates": RATES, "folds": FOLDS}

TRAINER = {"accelerator": "cpu", "gradient_clip_val": 1.0}


def jobs() -> Iterator[Job]:
    """Return all jobs in order: the two most important methods, then the others."""
    others = tuple(method for method in RATES if method not in MOST)
    for methods in (MOST, others):
        for network in NETWORKS:
            for method in methods if methods == MOST or network not in LARGE else ():
                for number in range(len(RATES[method])):
                    yield Job("choose", network, method, LABELS, 0, number)
    for network in NETWORKS:
        for method in MOST if network not in LARGE else ():
            yield Job("auto", network, method, LABELS, 0)
    for network in NETWORKS:
        for method in falling.METHODS:
            yield Job("falls", network, method, LABELS, 0)


def measure(job: Job, setting: int, tasks: dict[str, Any]) -> dict[str, Any]:
    """Train with a given rate or the one that a search finds, and measure on other items."""
    if job.kind == "falls":
        return falling.falls(job.task, job.method, tasks)
    quiet()
    network, rate = NETWORKS[job.task], RATES[job.method][setting]

    def build(rate: float) -> tuple[pl.LightningModule, list[Any]]:
        return network.module(tasks, rate), [lp.PEFT(job.method), lp.WarmupCosine(warmup=0.1)]

    data: Any = network.data(tasks, job.seed)
    how: dict[str, Any] = {"steps": STEPS, "seed": job.seed, "trainer": TRAINER}
    began = time.process_time()
    found: dict[str, Any] = {}
    if job.kind == "auto":
        auto = lp.find_rate(build, data, start=start_of(job.method), folds=FOLDS, **how)
        rate, spent = auto.rate, round(time.process_time() - began, 2)
        found = {"tried": {f"{one.rate:g}": one.loss for one in auto.trials}, "search": spent}
    whole = Fold(data.train_dataloader(), data.val_dataloader())
    found |= _told(tried(build, rate, [whole], monitor="val/loss", **how))
    return {"rate": rate, **found, "seconds": round(time.process_time() - began, 2)}


def _told(trial: RateTrial) -> dict[str, Any]:
    return {
        "balanced_accuracy": trial.metrics.get("val/balanced_accuracy", 0.0),
        "plain_loss": trial.metrics.get("val/loss"),
        "loss": trial.loss,
        "first_loss": trial.first,
        "last_loss": trial.last,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options = options_of(parser, argv, RESULTS, "networks, methods, kinds", processes=1)
    known = dict.fromkeys(NETWORKS, "task") | dict.fromkeys((*RATES, *falling.METHODS), "method")
    known |= dict.fromkeys(KINDS, "kind")
    asked = [job for job in jobs() if fits(options.only, known, job)]
    store = Store(options.out, RECIPE)
    runner = Runner(store, measure, partial(print, flush=True), choose=lambda lines, job: 0)
    return carry_out(runner, asked, options, lambda job: NETWORKS[job.task].task)


if __name__ == "__main__":
    raise SystemExit(main())
