"""Measure what a step costs: ``python -m benchmarks.resources``; a second call goes on.

--only vit_b16 time            some models, or some of time, bytes and loss
--rounds 7                     rounds of steps
--variants full lora           in these rounds, some of the variants
--list                         what is still to do
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import logging
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.evidence.store import Store
from benchmarks.resources.models import MODELS, RECIPE
from benchmarks.resources.plan import KEYS, ROUNDS, Job, jobs, matching
from benchmarks.resources.variants import variants

__all__ = ["RESULTS", "Runner", "main"]

RESULTS = Path("benchmarks/results/resources.jsonl")


class Measured:
    """Measures a job; what the jobs of a model share is made once.

    Args:
        only: The variants to time, if not all.
    """

    def __init__(self, only: Sequence[str] = ()) -> None:
        self.only = only
        self.name, self.base, self.steps = "", None, None

    def __call__(self, job: Job) -> dict[str, Any]:
        """Return the figures of a job."""
        import torch

        from benchmarks.resources import measure

        if job.model != self.name:
            self.base = self.steps = None
            gc.collect()
            torch.manual_seed(0)
            self.name, self.base = job.model, MODELS[job.model].make()
        if job.kind == "time":
            self.steps = self.steps or measure.Steps(job.model, self.base, self.only)
            taken = measure.seconds_of_round(self.steps, job.round)
            return {"seconds": {name: round(value, 5) for name, value in taken.items()}}
        self.steps = None
        if job.kind == "bytes":
            return measure.bytes_of(job.model, self.base, job.variant)
        steps, seconds = measure.steps_of_round(job.model, self.base, job.round)
        return {
            "steps": steps,
            "seconds": {name: round(value, 4) for name, value in seconds.items()},
        }


class Runner:
    """Runs jobs one after the other, and says how far it is.

    Args:
        store: The results.
        work: Turns a job into its figures.
        say: Takes a line of progress.
    """

    def __init__(self, store: Store, work: Callable[[Job], dict[str, Any]], say: Any) -> None:
        self.store, self.work, self.say = store, work, say

    def run(self, asked: Iterable[Job]) -> list[str]:
        """Run what is not in the results yet, and return what failed."""
        done = self.store.done()
        todo = [job for job in asked if job.key not in done]
        failed = []
        for number, job in enumerate(todo, 1):
            began = time.monotonic()
            try:
                found = self.work(job)
            except Exception as error:
                failed.append(f"{job}: {type(error).__name__}: {error}")
                self.say(failed[-1])
                continue
            took = round(time.monotonic() - began, 2)
            self.store.add({**dataclasses.asdict(job), **found, "took": took})
            left = self.seconds(todo[number:]) / 60
            self.say(f"{number} of {len(todo)}, about {left:.0f} min left  {job} ({took:.0f} s)")
        return failed

    def seconds(self, todo: Iterable[Job]) -> float:
        """Estimate how long jobs take, by those that were measured."""
        known: dict[tuple[str, str], list[float]] = {}
        for line in self.store.lines:
            for model in (line["model"], ""):
                known.setdefault((line["kind"], model), []).append(line["took"])
        total = 0.0
        for job in todo:
            taken = known.get((job.kind, job.model)) or known.get((job.kind, "")) or [30.0]
            total += statistics.median(taken)
        return total


def about() -> dict[str, str]:
    """Return what the figures were measured with."""
    packages = ("torch", "timm", "transformers", "peft", "lightning")
    return {"processor": _processor(), **{name: version(name) for name in packages}}


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.processor()


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=[], help="models; time, bytes, loss")
    parser.add_argument("--rounds", type=int, default=ROUNDS["time"], help="of steps")
    parser.add_argument("--variants", nargs="+", default=[], help="to time, of those of a model")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--list", action="store_true", help="say what is left, and stop")
    options = parser.parse_args(argv)
    asked = [job for job in jobs({**ROUNDS, "time": options.rounds}) if matching(options.only, job)]
    every = {name for model in MODELS for name in variants(model, "time")}
    if wrong := sorted(set(options.variants) - every):
        parser.error(f"expected variants among {', '.join(sorted(every))}, got {', '.join(wrong)}")
    store = Store(options.out, RECIPE, KEYS)
    runner = Runner(store, Measured(options.variants), lambda line: print(line, flush=True))
    done = store.done()
    if options.list:
        todo = [job for job in asked if job.key not in done]
        for job in todo:
            print(job)
        print(f"{len(todo)} of {len(asked)} left, about {runner.seconds(todo) / 60:.0f} min")
        return 0
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if not any(line["kind"] == "about" for line in store.lines):
        store.add({"kind": "about", "model": "", "took": 0.0, **about()})
    failed = runner.run(asked)
    for line in failed:
        print(line, file=sys.stderr)
    return min(len(failed), 100)


if __name__ == "__main__":
    raise SystemExit(main())
