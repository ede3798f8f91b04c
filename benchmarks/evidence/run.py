"""Run the evidence: ``python -m benchmarks.evidence.run``; a second call goes on where it stopped.

--only cells lora full 25      some tasks, methods or label budgets
--processes 2                  runs at the same time, of one thread each
--list                         what is still to do, and about how long it takes
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import operator
import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from benchmarks.evidence.methods import BASELINES, settings
from benchmarks.evidence.plan import Job, chosen, jobs, matching
from benchmarks.evidence.store import Store

__all__ = ["RESULTS", "Runner", "clock", "main", "measure", "warm_up"]

RESULTS = Path("benchmarks/results/evidence.jsonl")

GUESS = {"cells": 25.0, "reviews": 40.0, "types": 25.0}
"""Seconds of a run before any was measured."""


def measure(job: Job, setting: int, tasks: dict[str, Any]) -> dict[str, Any]:
    """Run a job and return its line, without the identity of the job."""
    from benchmarks.evidence.baselines import fit, frozen_features
    from benchmarks.evidence.tasks import draw, folds, load
    from benchmarks.evidence.train import train

    task = tasks[job.task] if job.task in tasks else load(job.task)
    drawn = draw(task, job.budget, job.seed)
    measured: Sequence[int] = task.test
    if job.kind == "choose":
        assert job.fold is not None
        drawn, measured = folds(task, drawn)[job.fold]
    one = settings(job.method, job.task)[setting]
    further = task.elsewhere if job.kind == "final" else ()
    if job.method in BASELINES:
        features = None if job.method == "bag_of_words" else frozen_features(task)
        found = fit(task, job.method, one, drawn, measured, features, further=further)
    else:
        split = "test" if job.kind == "final" else "val"
        where = {"seed": job.seed, "split": split, "further": further}
        found = train(task, job.method, one, drawn, measured, **where)
    return {"settings": str(one), "labelled": len(drawn), **found}


class Runner:
    """Runs jobs in processes of their own, and says how far it is.

    Args:
        store: The results.
        work: Turns a job and the number of a setting into a line.
        say: Takes a line of progress.
        choose: Returns the number of the setting of a run by the results so far; None if they do
            not say yet.
    """

    def __init__(
        self, store: Store, work: Any = measure, say: Any = print, choose: Any = chosen
    ) -> None:
        self.store = store
        self.work = work
        self.say = say
        self.choose = choose
        self.tasks: dict[str, Any] = {}
        self.failed: list[str] = []

    def run(self, asked: Sequence[Job], processes: int = 1) -> None:
        """Run what is not in the results yet."""
        done = self.store.done()
        todo = [job for job in asked if job.key not in done]
        total, finished = len(todo), 0
        running: dict[Any, tuple[Job, int, float, Any]] = {}
        while todo or running:
            while len(running) < processes and (ready := self._ready(todo)):
                job, setting = ready
                todo.remove(job)
                receiver, process = self._start(job, setting)
                running[receiver] = (job, setting, time.monotonic(), process)
            if not running:  # what is left waits for runs that failed
                self.failed += [f"{job}: its settings were not measured" for job in todo]
                break
            for receiver in wait(list(running)):
                job, setting, began, process = running.pop(receiver)
                line = _received(receiver)
                process.join()
                finished += 1
                took = time.monotonic() - began
                if line is None or "error" in line:
                    why = line["error"] if line else f"exit {process.exitcode}"
                    self.failed.append(f"{job}: {why}")
                    self.say(f"{job}: {why}")
                    continue
                line = {**dataclasses.asdict(job), "setting": None, **line, "took": round(took, 2)}
                line["setting" if job.kind == "choose" else "chosen"] = setting
                self.store.add(line)
                left = self.seconds([*todo, *(one for one, *_ in running.values())])
                self.say(
                    f"{finished} of {total}, {clock(left / processes)} left  "
                    f"{job}: {line['balanced_accuracy']:.3f} ({took:.0f} s)"
                )

    def seconds(self, todo: Sequence[Job]) -> float:
        """Estimate how long jobs take, by those that were measured."""
        known: dict[tuple[str, str, str], list[float]] = {}
        for line in self.store.lines:
            for key in ((line["task"], line["method"], line["kind"]), (line["task"], "", "")):
                if key[1] or line["method"] not in BASELINES:
                    known.setdefault(key, []).append(line["took"])
        means = {key: statistics.fmean(values) for key, values in known.items()}
        found = 0.0
        for job in todo:
            guess = (
                2.0
                if job.method in BASELINES
                else means.get((job.task, "", ""), GUESS.get(job.task, 30.0))
            )
            found += means.get((job.task, job.method, job.kind), guess)
        return found

    def _ready(self, todo: Sequence[Job]) -> tuple[Job, int] | None:
        for job in todo:
            number = job.setting if job.kind == "choose" else self.choose(self.store.lines, job)
            if number is not None:
                return job, number
        return None

    def _start(self, job: Job, setting: int) -> tuple[Connection, Any]:
        receiver, sender = multiprocessing.Pipe(duplex=False)
        arguments = (self.work, job, setting, self.tasks, sender)
        # a fork shares what is imported, and its memory is that of one run
        process = multiprocessing.get_context("fork").Process(target=_work, args=arguments)
        process.start()
        sender.close()
        return receiver, process


def _work(work: Any, job: Job, setting: int, tasks: dict[str, Any], sender: Connection) -> None:
    try:
        sender.send(work(job, setting, tasks))
    except Exception as error:
        sender.send({"error": f"{type(error).__name__}: {error}"})
    finally:
        sender.close()


def _received(receiver: Connection) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = receiver.recv()
    except EOFError:
        return None
    finally:
        receiver.close()
    return found


def clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d} h"


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options = options_of(parser, argv, RESULTS, "tasks, methods, label budgets", processes=2)
    from benchmarks.evidence.train import RECIPE

    asked = [job for job in jobs() if matching(options.only, job)]
    runner = Runner(Store(options.out, RECIPE), say=partial(print, flush=True))
    return carry_out(runner, asked, options)


def options_of(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    results: Path,
    only: str,
    processes: int | None = None,
) -> argparse.Namespace:
    """Read the options that such a command has, and keep the libraries offline and quiet."""
    parser.add_argument("--only", nargs="+", default=[], help=only)
    if processes is not None:
        parser.add_argument("--processes", type=int, default=processes)
    parser.add_argument("--out", type=Path, default=results)
    parser.add_argument("--list", action="store_true", help="say what is left, and stop")
    options = parser.parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is installed
    os.environ.setdefault("TQDM_DISABLE", "1")
    return options


def carry_out(
    runner: Runner,
    asked: Sequence[Any],
    options: argparse.Namespace,
    task_of: Callable[[Any], str] = operator.attrgetter("task"),
) -> int:
    """Run what was asked for, or list what is left; return the exit status."""
    if options.list:
        done = runner.store.done()
        left = [job for job in asked if job.key not in done]
        print(f"{len(left)} of {len(asked)} runs left, {clock(runner.seconds(left))} on one core")
        return 0
    warm_up(runner, sorted({*map(task_of, asked)}))
    runner.run(asked, options.processes)
    for line in runner.failed:
        print(f"failed: {line}")
    return min(len(runner.failed), 100)


def warm_up(runner: Runner, names: Sequence[str]) -> None:
    """Import and load what every run needs, before the processes are made."""
    import peft  # noqa: F401
    import sklearn.feature_extraction.text
    import sklearn.linear_model
    import sklearn.neighbors
    import sklearn.pipeline  # noqa: F401
    import timm  # noqa: F401
    import torch
    import transformers

    transformers.logging.set_verbosity_error()

    from benchmarks.evidence import baselines, tasks  # noqa: F401

    torch.set_num_threads(1)
    runner.tasks = {name: tasks.load(name) for name in names if name in tasks.TASKS}


if __name__ == "__main__":
    raise SystemExit(main())
