"""Medians and spreads of what was measured, as ratios within a round."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Lines", "Spread", "ratio", "rounds", "sizes", "to_a_loss"]

Lines = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it.

    Attributes:
        median: The median.
        low: The lower quartile.
        high: The upper quartile.
        count: How many values they are of.
    """

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """Return that of some values, or None for none; quartiles lie among the values."""
        found = sorted(values)
        if not found:
            return None
        if len(found) == 1:
            return cls(found[0], found[0], found[0], 1)
        low, median, high = statistics.quantiles(found, n=4, method="inclusive")
        return cls(median, low, high, len(found))

    def __str__(self) -> str:
        if self.count == 1:
            return f"{self.median:.2f}"
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


def rounds(lines: Lines, model: str) -> list[Mapping[str, float]]:
    """Return the seconds of every variant of a model, round by round."""
    mine = [line for line in lines if (line["kind"], line["model"]) == ("time", model)]
    return [line["seconds"] for line in sorted(mine, key=lambda line: line["round"])]


def ratio(lines: Lines, model: str, variant: str, to: str = "full") -> Spread | None:
    """Return the time of a step to that of another variant in the same round."""
    both = [taken for taken in rounds(lines, model) if variant in taken and to in taken]
    return Spread.of(taken[variant] / taken[to] for taken in both)


def sizes(lines: Lines, model: str) -> dict[str, Mapping[str, Any]]:
    """Return the bytes of every variant of a model."""
    return {
        line["variant"]: line for line in lines if (line["kind"], line["model"]) == ("bytes", model)
    }


def to_a_loss(lines: Lines, model: str) -> dict[str, tuple[list[int], Spread | None]]:
    """Return for each method the steps of the rounds that reached the loss, and their time.

    The time is that to full fine-tuning in the same round, over the rounds in which both did.
    """
    mine = [line for line in lines if (line["kind"], line["model"]) == ("loss", model)]
    found: dict[str, tuple[list[int], Spread | None]] = {}
    for method in dict.fromkeys(name for line in mine for name in line["steps"]):
        here = [line for line in mine if line["steps"].get(method)]
        both = [line for line in here if line["steps"].get("full")]
        taken = Spread.of(line["seconds"][method] / line["seconds"]["full"] for line in both)
        found[method] = ([line["steps"][method] for line in here], taken)
    return found
