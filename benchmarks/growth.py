"""Measure how the cost of a step grows with rank, depth, batch and tokens.

    python benchmarks/growth.py                                # minutes on two cores
    python benchmarks/growth.py --picture growth.png --out growth.json

Starting from a small vision transformer, one quantity grows at a time. At each point the limit
(everything frozen, the gradient taken down to the input), LoRA of lightning-peft and LoRA of peft
take a step in turn, in one process; a figure is the median of the ratios in each round. The ratio
to the limit shows the cost of LoRA itself, the ratio to peft compares the two packages.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from figures import CLOCKS, interleaved, timed, write_figures
from rich.console import Console
from rich.table import Table
from steps import CHOICES, step_of, variants

START = {"rank": 8, "depth": 4, "batch": 8, "size": 96}
GROWS = {
    "rank": (4, 8, 16, 32, 64, 128),
    "depth": (2, 4, 8, 12),
    "batch": (1, 4, 16, 32),
    "size": (32, 64, 128, 224),
}
PATCH = 16


def measured_at(
    point: dict[str, int], options: argparse.Namespace, clock: Callable[[], float]
) -> dict[str, Any]:
    """Time one point.

    Args:
        point: ``rank``, ``depth``, ``batch`` and ``size`` (the edge of an image in pixels).
        options: ``backbone``, ``targets`` and ``rounds``.
        clock: What tells the seconds.

    Returns:
        The point, its ``tokens``, the median ``seconds`` of a step of lightning-peft, and the
        ratios ``to_limit`` and ``to_peft`` with their spreads.
    """
    size, batch = point["size"], point["batch"]
    images, labels = torch.randn(batch, 3, size, size), torch.randint(0, 10, (batch,))
    settings = {"depth": point["depth"], "img_size": size}
    given = argparse.Namespace(
        **{**vars(options), "rank": point["rank"], "model_settings": settings}
    )
    models = variants(given, images, ("limit", "lightning-peft", "peft"))

    timers = {
        name: timed(step_of(name, model, images, labels), clock) for name, model in models.items()
    }
    figures = interleaved(timers, options.rounds)
    ours = figures["lightning-peft"]
    pairs = zip(ours["times"], figures["peft"]["times"], strict=True)
    beside = sorted(mine / theirs for mine, theirs in pairs)
    return {
        **point,
        "tokens": (size // PATCH) ** 2 + 1,
        "seconds": ours["seconds"],
        "to_limit": ours["ratio"],
        "to_limit_spread": ours["spread"],
        "to_peft": statistics.median(beside),
        "to_peft_spread": [beside[0], beside[-1]],
    }


def draw(series: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw a panel for each quantity that grows.

    Args:
        series: For each quantity, the points.
        path: The file to write; its ending selects the format.
    """
    from matplotlib.figure import Figure

    picture = Figure(figsize=(3 * len(series), 3), layout="constrained")
    panels = picture.subplots(1, len(series), sharey=True, squeeze=False)[0]
    for axes, (what, points) in zip(panels, series.items(), strict=True):
        shown = "tokens" if what == "size" else what
        x = [point[shown] for point in points]
        for key, label, colour in (
            ("to_limit", "to the limit", "#2f6db3"),
            ("to_peft", "to peft", "#c8642b"),
        ):
            low, high = zip(*(point[f"{key}_spread"] for point in points), strict=True)
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(x, [point[key] for point in points], "o-", color=colour, label=label)
        axes.axhline(1, color="#555", linewidth=0.8)
        axes.set_xscale("log", base=2)
        axes.set_xticks(x, [str(value) for value in x])
        axes.minorticks_off()
        axes.set_xlabel(f"{shown} an image" if shown == "tokens" else shown)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("time of a step, ratio")
    panels[0].legend(frameon=False)
    picture.savefig(path, dpi=150)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="vit_tiny_patch16_224")
    parser.add_argument("--targets", choices=CHOICES, default="all-linear")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--grow", nargs="+", choices=GROWS, default=list(GROWS))
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: with --threads 1")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--picture", type=Path, help="draw them")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    clock = CLOCKS[options.clock]
    series: dict[str, list[dict[str, Any]]] = {}
    for what in options.grow:
        table = Table(what, "tokens", "ms a step", "to the limit", "to peft")
        series[what] = []
        for value in GROWS[what]:
            found = measured_at({**START, what: value}, options, clock)
            series[what].append(found)
            ratios = []
            for key in ("to_limit", "to_peft"):
                low, high = found[f"{key}_spread"]
                ratios.append(f"{found[key]:.3f} ({low:.2f} - {high:.2f})")
            ms = f"{1e3 * found['seconds']:.1f}"
            table.add_row(str(value), str(found["tokens"]), ms, *ratios)
        Console().print(table)
    write_figures(options, series=series)
    if options.picture:
        draw(series, options.picture)


if __name__ == "__main__":
    main()
