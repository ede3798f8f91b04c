"""The jobs in order, and which of them were asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.evidence.plan import fits
from benchmarks.evidence.store import key_of
from benchmarks.resources.models import MODELS
from benchmarks.resources.variants import variants

__all__ = ["KEYS", "KINDS", "ROUNDS", "Job", "jobs", "matching"]

KEYS = ("kind", "model", "variant", "round")

ROUNDS = {"time": 5, "loss": 3}

KINDS = ("time", "bytes", "loss")


@dataclasses.dataclass(frozen=True)
class Job:
    """What is measured at once.

    Attributes:
        kind: ``"time"``, a round of steps of every variant; ``"bytes"`` of one variant; ``"loss"``,
            a round of training every method.
        model: The model.
        variant: The variant, of ``"bytes"``.
        round: The number of the round, from 0.
    """

    kind: str
    model: str
    variant: str | None = None
    round: int | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """What identifies it among the results."""
        return key_of(dataclasses.asdict(self), KEYS)

    def __str__(self) -> str:
        what = self.variant if self.round is None else f"round {self.round + 1}"
        return f"{self.model}, {self.kind}, {what}"


def jobs(rounds: Mapping[str, int] = ROUNDS) -> Iterator[Job]:
    """Return all jobs in order: times of each model, then bytes, then losses."""
    for kind in KINDS:
        for name, model in MODELS.items():
            if kind not in model.kinds:
                continue
            if kind == "bytes":
                yield from (Job(kind, name, variant) for variant in variants(name, kind))
            else:
                yield from (Job(kind, name, round=number) for number in range(rounds[kind]))


def matching(words: Sequence[str], job: Job) -> bool:
    """Whether a job is asked for: every word is a model or a kind; of one kind, either will do.

    Raises:
        DataError: If a word is neither.
    """
    known = dict.fromkeys(MODELS, "model") | dict.fromkeys(KINDS, "kind")
    return fits(words, known, job)
