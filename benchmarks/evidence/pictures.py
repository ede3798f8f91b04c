"""Two pictures of a task: score against labels, and score against trained parameters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.evidence.methods import BASELINES
from benchmarks.evidence.summary import ROOM, Cell, Costs, interval

__all__ = ["draw_costs", "draw_labels"]

WORDS = {"cells": "balanced accuracy, %", "reviews": "macro F1, %"}
SHOWN = ("lora", "dora", "norm", "bitfit", "full", "lp_ft", "last_blocks", "linear_probe",
         "scratch", "logistic_regression", "bag_of_words")  # fmt: skip
"""What the picture of labels shows: more lines could not be told apart."""

Found = Mapping[tuple[str, int, str], Cell]


def draw_labels(found: Found, task: str, path: Path) -> None:
    """Draw the score against labels a class, a line for each method, with 95 % intervals."""
    figure, axes = _figure()
    names = [name for name in SHOWN if any((task, b, name) in found for b in (10, 25, 100))]
    for place, name in enumerate(names):
        own = sorted(budget for t, budget, m in found if (t, m) == (task, name))
        scores = [list(found[task, budget, name].scores.values()) for budget in own]
        axes.errorbar(
            [budget * 1.025 ** (place - len(names) / 2) for budget in own],  # side by side
            [sum(values) / len(values) for values in scores],
            yerr=[interval(values) for values in scores],
            label=name,
            marker="os^Dv"[place % 5],
            markersize=4,
            linewidth=1.2,
            elinewidth=0.7,
            linestyle=":" if name in BASELINES else "--" if name in ROOM else "-",
        )
    axes.set_xscale("log")
    axes.set_xticks([10, 25, 100], ["10", "25", "100"])
    axes.minorticks_off()
    axes.set_xlabel("labels a class")
    _finish(figure, axes, task, path)


def draw_costs(
    found: Found, costs: Mapping[str, Costs], task: str, budget: int, path: Path
) -> None:
    """Draw the score against trained parameters, a point for each method, with 95 % intervals."""
    figure, axes = _figure()
    for place, name in enumerate(sorted(costs, key=lambda name: costs[name].trained)):
        cell = found.get((task, budget, name))
        if cell is None:
            continue
        values = list(cell.scores.values())
        axes.errorbar(
            [costs[name].trained],
            [cell.mean],
            yerr=[interval(values)],
            marker="o" if name not in ROOM else "s",
            color=f"C{place % 10}",
            markersize=5,
            elinewidth=0.8,
            label=name,
        )
    axes.set_xscale("log")
    axes.set_xlabel(f"trained parameters (circles: adapters), {budget} labels a class")
    _finish(figure, axes, task, path)


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    return figure, figure.add_subplot()


def _finish(figure: Any, axes: Any, task: str, path: Path) -> None:
    axes.set_ylabel(WORDS[task])
    axes.grid(alpha=0.3, linewidth=0.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)
