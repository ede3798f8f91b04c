"""The order of the runs: what a first look needs comes first."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.evidence.methods import BASELINES, CORE, settings, trained_methods
from benchmarks.evidence.store import key_of
from benchmarks.evidence.tasks import TASKS
from lightning_peft.errors import DataError

__all__ = ["BUDGETS", "FOLDS", "Job", "all_chosen", "as_loss", "chosen", "fits", "jobs", "matching"]

BUDGETS = (25, 10, 100)
FOLDS = 2

CLASSES = {"cells": 2, "reviews": 3, "types": 4}
FELL = 0.95
"""A training loss above this share of that of chance, log K, at the end of a run has not fallen."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A run: ``"choose"`` measures a setting on a fold of the first seed, ``"final"`` on the test.

    Attributes:
        kind: Which of both.
        task: The task.
        method: The method, or a baseline.
        budget: Labelled items a class.
        seed: The seed.
        setting: Its number, of those in :func:`settings`; None in a final run, which takes the one
            that was chosen.
        fold: The fold that is measured.
    """

    kind: str
    task: str
    method: str
    budget: int
    seed: int
    setting: int | None = None
    fold: int | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """What identifies it among the results."""
        return key_of({**dataclasses.asdict(self), **({} if self.kind == "choose" else FINAL)})

    def __str__(self) -> str:
        what = (
            f"choice {self.setting}.{self.fold}" if self.kind == "choose" else f"seed {self.seed}"
        )
        return f"{self.task} {self.budget} a class, {self.method}, {what}"


FINAL: dict[str, Any] = {"setting": None, "fold": None}


def jobs(seeds: int = 5) -> Iterator[Job]:
    """Return all jobs in order: the core with 25 and 10 labels, the others with these, then 100.

    With 100 labels the core and training from scratch are all; of the four classes the core with 25
    and 10 labels.
    """
    core: dict[str, list[str]] = {}
    others: dict[str, list[str]] = {}
    many: dict[str, list[str]] = {}
    for task in TASKS:
        baselines = [name for name in BASELINES if task == "reviews" or name != "bag_of_words"]
        methods = trained_methods(task)
        core[task] = [*baselines, *(name for name in methods if name in CORE)]
        others[task] = [name for name in methods if name not in CORE and task != "types"]
        many[task] = [*core[task], "scratch"] if task != "types" else []
    for named, budgets in ((core, (25, 10)), (others, (25, 10)), (many, (100,))):
        for task in TASKS:
            for budget in budgets:
                for method in named[task]:
                    yield from _cell(task, method, budget, seeds)


def _cell(task: str, method: str, budget: int, seeds: int) -> Iterator[Job]:
    for number in range(len(settings(method, task))):
        for fold in range(FOLDS):
            yield Job("choose", task, method, budget, 0, number, fold)
    for seed in range(seeds):
        yield Job("final", task, method, budget, seed)


def chosen(lines: Iterable[Mapping[str, Any]], job: Job) -> int | None:
    """Return the setting that cross-validation chose for a job, or None if it is not finished.

    The highest mean balanced accuracy over the folds; of equal ones the lowest loss. A setting with
    which the training loss did not fall in one of the folds comes behind all others.
    """
    found: dict[int, list[Mapping[str, Any]]] = {}
    for line in lines:
        same = (line.get("task"), line.get("method"), line.get("budget"))
        if line.get("kind") == "choose" and same == (job.task, job.method, job.budget):
            found.setdefault(int(line["setting"]), []).append(line)
    count = len(settings(job.method, job.task))
    if any(len(found.get(number, ())) < FOLDS for number in range(count)):
        return None

    chance = math.log(CLASSES[job.task])

    def fell(line: Mapping[str, Any]) -> bool:
        last = line.get("last_loss")  # what is not trained has none
        return last is None or as_loss(last) < FELL * chance

    def worth(number: int) -> tuple[bool, float, float]:
        folds = found[number]
        score = sum(line["balanced_accuracy"] for line in folds) / len(folds)
        loss = sum(as_loss(line["loss"]) for line in folds) / len(folds)
        return all(map(fell, folds)), round(score, 9), -loss

    return max(range(count), key=worth)


def all_chosen(lines: Sequence[Mapping[str, Any]], wanted: Iterable[Job]) -> dict[Job, int]:
    """Return the setting that was chosen for each of some jobs.

    Raises:
        DataError: If none was chosen for some of them.
    """
    found = {job: chosen(lines, job) for job in wanted}
    if missing := [job for job, number in found.items() if number is None]:
        words = sorted({f"{job.method} on {job.task} {job.budget}" for job in missing})
        raise DataError(
            f"Expected chosen settings in the evidence, got none for {', '.join(words)}: "
            "`make evidence` chooses them."
        )
    return {job: number for job, number in found.items() if number is not None}


def matching(words: Sequence[str], job: Job) -> bool:
    """Whether a job is asked for: every word is a task, a method, or a number of labels.

    Words of one kind are alternatives: ``cells lora full 25`` is two methods with 25 labels.

    Raises:
        DataError: If a word is none of these.
    """
    known = dict.fromkeys(TASKS, "task")
    known |= {name: "method" for task in TASKS for name in trained_methods(task)}
    known |= dict.fromkeys(BASELINES, "method")
    known |= {str(budget): "budget" for budget in BUDGETS}
    return fits(words, known, job)


def fits(words: Sequence[str], known: Mapping[str, str], job: Any) -> bool:
    """Whether a job has one of the words of each attribute that words are given for.

    Args:
        words: What is asked for.
        known: The attribute of a job that each word belongs to.
        job: The job.

    Raises:
        DataError: If a word is not known.
    """
    if wrong := [word for word in words if word not in known]:
        raise DataError(f"Expected {', '.join(known)} after --only, got {', '.join(wrong)}.")
    kinds: dict[str, set[str]] = {}
    for word in words:
        kinds.setdefault(known[word], set()).add(word)
    return all(str(getattr(job, kind)) in asked for kind, asked in kinds.items())


def as_loss(value: Any) -> float:
    """Return a loss of a line; what is missing or NaN is infinite."""
    found = float("inf") if value is None else float(value)
    return float("inf") if found != found else found
