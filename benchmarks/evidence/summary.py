"""What the runs say: means and intervals over seeds, paired differences, costs, what was chosen."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.evidence.methods import BASELINES
from lightning_peft.cli.comparing.significance import Contrast, contrast, holm

__all__ = [
    "HEADLINE",
    "ROOM",
    "Cell",
    "Costs",
    "adapters",
    "against",
    "cells",
    "costs",
    "interval",
    "on_average",
]

HEADLINE = {"cells": "balanced_accuracy", "reviews": "f1", "types": "balanced_accuracy"}
"""The metric of each task; of reviews macro F1, since nine in ten are not neutral."""

ROOM = ("full", "lp_ft", "last_blocks", "linear_probe", "scratch", *BASELINES)
"""What is no adapter."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """A method with some labels on a task.

    Attributes:
        task: The task.
        budget: Labels a class.
        method: The method.
        scores: The headline metric of each seed, in percent.
        accuracies: The accuracy of each seed, in percent.
        setting: The setting that was chosen.
    """

    task: str
    budget: int
    method: str
    scores: Mapping[int, float]
    accuracies: Mapping[int, float]
    setting: str

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return statistics.fmean(self.scores.values())


@dataclasses.dataclass(frozen=True)
class Costs:
    """What the runs of a method on a task cost: medians.

    Attributes:
        trained: Trained parameters, the head's among them.
        checkpoint: Bytes of the trained parameters.
        memory: Bytes by which the process grew at most.
        step: Processor seconds of a step.
        total: Processor seconds of a run, its test included.
        runs: How many runs.
    """

    trained: int
    checkpoint: int
    memory: int
    step: float
    total: float
    runs: int


def cells(lines: Iterable[Mapping[str, Any]], prefix: str = "") -> dict[tuple[str, int, str], Cell]:
    """Collect the tested runs by task, labels and method.

    Args:
        lines: The results.
        prefix: ``"elsewhere_"`` for what was measured on items from elsewhere.

    Returns:
        The cells; runs without such a measurement are left out.
    """
    found: dict[tuple[str, int, str], list[Mapping[str, Any]]] = {}
    for line in lines:
        if line["kind"] == "final" and f"{prefix}accuracy" in line:
            found.setdefault((line["task"], line["budget"], line["method"]), []).append(line)
    return {
        key: Cell(
            *key,
            scores={line["seed"]: 100 * float(line[prefix + HEADLINE[key[0]]]) for line in runs},
            accuracies={line["seed"]: 100 * float(line[f"{prefix}accuracy"]) for line in runs},
            setting=Counter(line["settings"] for line in runs).most_common(1)[0][0],
        )
        for key, runs in found.items()
    }


def interval(values: Sequence[float]) -> float:
    """Return half the width of the 95 % interval of a mean, by Student's t; NaN for one value."""
    if len(values) < 2:
        return math.nan
    from scipy import stats

    quantile = float(stats.t.ppf(0.975, len(values) - 1))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def against(
    found: Mapping[tuple[str, int, str], Cell], task: str, budget: int, base: str = "full"
) -> list[Contrast]:
    """Compare every method with a base, seed by seed, corrected for their number (Holm).

    Args:
        found: The cells.
        task: The task.
        budget: Labels a class.
        base: The method that the others are compared with.

    Returns:
        Contrasts: a method minus the base, in points.
    """
    reference = found.get((task, budget, base))
    if reference is None:
        return []
    others = [c for (t, b, name), c in found.items() if (t, b) == (task, budget) and name != base]
    return list(holm([contrast(c.method, base, c.scores, reference.scores) for c in others]))


def adapters(found: Mapping[tuple[str, int, str], Cell], task: str, budget: int) -> list[Cell]:
    """Return the adapters of a task that were tested with all seeds of full fine-tuning."""
    reference = found.get((task, budget, "full"))
    return [
        cell
        for (t, b, name), cell in found.items()
        if (t, b) == (task, budget)
        and name not in ROOM
        and reference is not None
        and cell.scores.keys() >= reference.scores.keys()
    ]


def on_average(
    found: Mapping[tuple[str, int, str], Cell], task: str, budget: int
) -> Contrast | None:
    """Compare the mean of all adapters with full fine-tuning, seed by seed: one test, no choice."""
    cells_of = adapters(found, task, budget)
    if len(cells_of) < 2:
        return None
    reference = found[task, budget, "full"].scores
    means = {seed: statistics.fmean(cell.scores[seed] for cell in cells_of) for seed in reference}
    return holm([contrast("adapters", "full", means, reference)])[0]


def costs(lines: Iterable[Mapping[str, Any]], task: str) -> dict[str, Costs]:
    """Return the costs of each trained method on a task, over all its tested runs."""
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        if line["kind"] == "final" and line["task"] == task and line.get("trainable_parameters"):
            runs.setdefault(line["method"], []).append(line)

    def middle(of: Sequence[Mapping[str, Any]], name: str) -> float:
        return statistics.median(float(line[name]) for line in of)

    return {
        method: Costs(
            trained=int(middle(of, "trainable_parameters")),
            checkpoint=int(middle(of, "checkpoint_bytes")),
            memory=int(middle(of, "extra_bytes")),
            step=statistics.median(line["cpu_seconds"] / line["steps"] for line in of),
            total=middle(of, "all_cpu_seconds"),
            runs=len(of),
        )
        for method, of in runs.items()
    }
