"""One picture: time and memory of a step against trained parameters."""

from __future__ import annotations

from pathlib import Path

from benchmarks.resources.models import MODELS
from benchmarks.resources.summary import Lines, ratio, sizes
from benchmarks.resources.tables import timed_models
from benchmarks.resources.variants import methods

__all__ = ["draw"]


def draw(lines: Lines, path: Path) -> None:
    """Draw a point for each method and model, its colour the method, its shape the model."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    models = timed_models(lines)
    names = list(dict.fromkeys(name for model in models for name in methods(model)))
    colours = {name: f"C{place}" for place, name in enumerate(names) if place < 10}
    colours |= dict.fromkeys(names[10:], "#444444")
    marks = dict(zip(models, "osD^vP", strict=False))
    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True)
    for model in models:
        counted = sizes(lines, model)
        full = counted.get("full")
        for name in methods(model):
            line, time = counted.get(name), ratio(lines, model, name)
            if line is None:
                continue
            share = line["trained"] / line["total"]
            style = {"color": colours[name], "marker": marks[model], "markersize": 5}
            if time is not None:
                spread = [[time.median - time.low], [time.high - time.median]]
                left.errorbar([share], [time.median], yerr=spread, elinewidth=0.8, **style)
            if full is not None:
                right.plot([share], [line["peak"] / full["peak"]], linestyle="", **style)
    left.set_ylabel("time of a step (full = 1)")
    right.set_ylabel("memory of a step at its peak (full = 1)")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("share of the parameters that is trained")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    handles = [Line2D([], [], color=colours[n], marker="o", linestyle="", label=n) for n in names]
    handles += [
        Line2D([], [], color="#888888", marker=marks[m], linestyle="", label=MODELS[m].title)
        for m in models
    ]
    figure.legend(handles=handles, loc="outside right center", fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)
