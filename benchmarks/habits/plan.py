"""The order of the runs: a first look at everything with a few seeds, then the other seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.evidence.plan import Job
from benchmarks.evidence.tasks import TASKS
from benchmarks.habits.candidates import CANDIDATES
from benchmarks.habits.recipes import LABELS, recipes
from lightning_peft.errors import DataError

__all__ = ["KINDS", "jobs", "matching"]

KINDS = ("habits", "rank")
FIRST = {"habits": 3, "rank": 2}
ALL = {"habits": 5, "rank": 3}
"""Seeds of the first look, and in all."""


def jobs() -> Iterator[Job]:
    """Return all jobs in order: seed by seed, so that what is there is paired."""
    for task in TASKS:
        for kind in KINDS:
            yield from _seeds(kind, task, range(FIRST[kind]))
    for kind in reversed(KINDS):
        for task in TASKS:
            yield from _seeds(kind, task, range(FIRST[kind], ALL[kind]))


def _seeds(kind: str, task: str, seeds: Sequence[int]) -> Iterator[Job]:
    for seed in seeds:
        for name in recipes(task) if kind == "habits" else CANDIDATES[task]:
            yield Job(kind, task, name, LABELS, seed)


def matching(words: Sequence[str], job: Job) -> bool:
    """Whether a job is asked for: every word is a task, a kind, a recipe or a candidate.

    Words of one kind are alternatives: ``cells habits all none``.

    Raises:
        DataError: If a word is none of these.
    """
    known = dict.fromkeys(TASKS, "task") | dict.fromkeys(KINDS, "kind")
    known |= {name: "method" for task in TASKS for name in (*recipes(task), *CANDIDATES[task])}
    if wrong := [word for word in words if word not in known]:
        raise DataError(f"Expected {', '.join(known)} after --only, got {', '.join(wrong)}.")
    kinds: dict[str, set[str]] = {}
    for word in words:
        kinds.setdefault(known[word], set()).add(word)
    return all(str(getattr(job, kind)) in asked for kind, asked in kinds.items())
