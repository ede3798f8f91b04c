"""Pictures: score against labels, score and memory against trained parameters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.evidence.methods import BASELINES
from benchmarks.evidence.summary import ROOM, Cell, Costs, interval
from benchmarks.evidence.tables import name_of
from lightning_peft.cli.comparing.figures import name_points

__all__ = ["draw_costs", "draw_labels", "draw_overview"]

TITLES = {
    "cells": "Solar cells, EfficientNet-Lite0 of ImageNet",
    "reviews": "Drug reviews, MiniLM sentence encoder",
    "types": "Solar cells by type, EfficientNet-Lite0 of ImageNet",
}
WORDS = {"cells": "balanced accuracy, %", "reviews": "macro F1, %", "types": "balanced accuracy, %"}
SHOWN = ("lora", "dora", "norm", "bitfit", "full", "lp_ft", "last_blocks", "linear_probe",
         "scratch", "logistic_regression", "bag_of_words")  # fmt: skip
"""The lines of the picture of labels, the names of the overview: more could not be told apart."""

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


def draw_overview(found: Found, costs: Mapping[str, Mapping[str, Costs]], path: Path) -> None:
    """Draw score and memory against trained parameters, a column for each task.

    Args:
        found: The cells.
        costs: The costs of each method, by task.
        path: The file of the picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(costs) + 0.6, 6.0), layout="constrained")
    grid = figure.subplots(
        2, len(costs), sharex="col", squeeze=False, gridspec_kw={"height_ratios": (1, 1)}
    )
    names = []
    for (score, memory), (task, spent) in zip(grid.T, costs.items(), strict=True):
        names.append((memory, _overview_of_a_task(found, task, spent, score, memory)))
        score.set_title(TITLES[task], fontsize=10)
    for axes in grid.flat:
        axes.grid(alpha=0.3, linewidth=0.5)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    for memory, points in names:
        if not name_points(figure, memory, *points):
            print(f"no room for the names of the methods in {path}")
    figure.savefig(path, dpi=130)


def _overview_of_a_task(
    found: Found, task: str, spent: Mapping[str, Costs], score: Any, memory: Any
) -> tuple[list[tuple[float, float, str]], list[Any]]:
    """Draw a column; return the points with their names, for when all is drawn, and all points."""
    for place, budget in enumerate((10, 25)):
        names = [name for name in spent if (task, budget, name) in found]
        if not names:
            continue
        values = [list(found[task, budget, name].scores.values()) for name in names]
        score.errorbar(
            [spent[name].trained * 1.06 ** (2 * place - 1) for name in names],  # side by side
            [sum(of) / len(of) for of in values],
            yerr=[interval(of) for of in values],
            fmt="os"[place],
            color=f"C{place}",
            markersize=4.5,
            elinewidth=0.8,
            label=f"{budget} labels a class",
        )
        simple = found.get((task, budget, "logistic_regression"))
        if simple is not None:
            score.axhline(simple.mean, color=f"C{place}", linestyle=":", linewidth=1)
    score.plot([], [], ":", color="gray", linewidth=1, label="logistic regression, frozen features")
    points, dots = [], []
    for names in _side_by_side(spent):
        x, y = spent[names[0]].trained, spent[names[0]].memory / 1e6
        told = [name for name in names if name in SHOWN]
        dots += memory.plot([x], [y], "o", markersize=4, color="k" if told else "0.7")
        words = (name_of(name).strip("`").replace(" fine-tuning", "") for name in told)
        if told:
            points.append((x, y, ", ".join(words)))
    memory.set_xscale("log")
    memory.margins(x=0.12, y=0.3)
    memory.set_xlabel("trained parameters")
    memory.set_ylabel("memory of training, MB")
    score.set_ylabel(WORDS[task])
    score.legend(fontsize=8, frameon=False, loc="lower right")
    return points, dots


def _side_by_side(spent: Mapping[str, Costs]) -> list[list[str]]:
    """Return the methods by trained parameters; those that would cover each other are together."""
    found: list[list[str]] = []
    for name in sorted(spent, key=lambda name: spent[name].trained):
        one, before = spent[name], spent[found[-1][0]] if found else None
        if before and one.trained < 1.05 * before.trained and one.memory < 1.2 * before.memory:
            found[-1].append(name)
        else:
            found.append([name])
    return found


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
