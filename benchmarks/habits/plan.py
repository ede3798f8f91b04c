"""The order of the runs: a first look at everything with a few seeds, then the other seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.evidence.plan import Job, fits
from benchmarks.habits.candidates import CANDIDATES
from benchmarks.habits.recipes import LABELS, TASKS, recipes

__all__ = ["KINDS", "jobs", "matching"]

KINDS = ("habits", "rank")
FIRST = 3
SEEDS = {"habits": 5, "rank": 3}
"""Seeds of the first look, and of each kind in all."""


def jobs() -> Iterator[Job]:
    """Return all jobs in order: seed by seed, so that what is there is paired."""
    for seeds in (range(FIRST), range(FIRST, max(SEEDS.values()))):
        for task in TASKS:
            for seed in seeds:
                for kind in KINDS:
                    if seed < SEEDS[kind]:
                        yield from _all(kind, task, seed)


def _all(kind: str, task: str, seed: int) -> Iterator[Job]:
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
    return fits(words, known, job)
