"""Write a comparison as a table for a console, as JSON and as CSV."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning_peft.cli.comparing.comparison import Comparison, Row, Spread
from lightning_peft.cli.comparing.fitting import fitted, left_out, longest_word
from lightning_peft.cli.comparing.grids import Grid
from lightning_peft.cli.comparing.pareto import pareto_grid, pareto_json, pareto_set
from lightning_peft.cli.comparing.significance import Contrast
from lightning_peft.cli.comparing.swept import swept_grid, swept_json, swept_numbers
from lightning_peft.cli.comparing.vtab_means import vtab_grid, vtab_json, vtab_means
from lightning_peft.cli.comparing.wording import duration, interval, score, size
from lightning_peft.evaluation.csv_rows import RowWriter

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["as_csv", "as_json", "comparison_table", "more_grids", "notes", "runs_of"]

FORMAT = 3
"""The format of ``comparison.json``; it is raised when a key changes its meaning or its place."""

PEAK = "peak"

SPARE = (PEAK, "checkpoint", "step", "total")
"""The columns that go first where a console is too narrow for all."""

FILE = "comparison.csv"

QUANTITIES = {
    "accuracy": "",
    "trained": "_parameters",
    "checkpoint": "_bytes",
    "step": "_seconds",
    "total": "_seconds",
    "memory": "_bytes",
}
"""The quantities of a row, and the unit that the CSV has in their names."""

MEMORY = {
    "GPU": "peak memory: allocated on the GPU while training",
    "process": "peak memory: of the whole process since it started, so a job of a sweep shows no "
    "less than the jobs before it in the same process",
    "mixed": "peak memory: of the GPU in some runs and of the process in others; not comparable",
}


def notes(comparison: Comparison, *, with_memory: bool = True) -> list[str]:
    """Return the notes on the numbers of a comparison, one line each."""
    seeds = max((row.accuracy.count for row in comparison.rows if row.accuracy), default=0)
    found = []
    if seeds > 1 and comparison.same_seeds:
        found.append(f"mean ± standard deviation over {seeds} seeds")
    elif not comparison.same_seeds:
        found.append(
            "mean ± standard deviation over the seeds of each row, which are not the same: compare "
            "rows by the tests, which use their common seeds"
        )
    if any(interval(row, comparison.metric) for row in comparison.rows):
        found.append(
            f"[95 % interval] of a single run: for this model on similar test {comparison.noun}; "
            "it says nothing about other seeds"
        )
    if any(row.seeds and row.accuracy is None for row in comparison.rows):
        found.append(
            f"- for {comparison.metric.replace('/', ' ')}: these runs did not measure it, because "
            "they have another task or were not tested"
        )
    if comparison.lower:
        found.append(f"lower {comparison.metric.replace('/', ' ')} is better")
    if comparison.images:
        train, val, test = (comparison.images.get(s, 0) for s in ("train", "val", "test"))
        did = "chose the checkpoint" if comparison.chosen else "validated"
        chosen = f", {val} others {did}" if val else ""
        tested = f", {test} tested" if comparison.metric.startswith("test/") else ""
        found.append(f"{train} labelled {comparison.noun} trained{chosen}{tested}")
    if told := _pruned(comparison):
        found.append(told)
    if comparison.memory and with_memory:
        found.append(MEMORY[comparison.memory])
    return found


def _pruned(comparison: Comparison) -> str:
    """Return how many runs were stopped by a pruner, and when."""
    runs = [run for row in comparison.rows for run in row.runs]
    steps = sorted(run.steps or 0 for run in runs if run.status == "pruned")
    if not steps:
        return ""
    when = f"{steps[0]}" if steps[0] == steps[-1] else f"{steps[0]} to {steps[-1]}"
    return (
        f"pruned: {len(steps)} of {len(runs)} runs, stopped by their search after {when} steps; "
        "they are not counted here"
    )


def runs_of(row: Row) -> str:
    """Return how many of a row's runs completed, such as ``"3"`` or ``"1 of 3"``."""
    if row.baseline:
        return ""
    done = len(row.seeds)
    all_of_them = done + len(row.failed) + len(row.unfinished) + row.pruned
    return str(done) if done == all_of_them else f"{done} of {all_of_them}"


def cells(row: Row, metric: str) -> list[str]:
    """Return the quantities of a row as text, in the order of the columns."""
    return [
        f"{score(row.accuracy, metric)} {interval(row, metric)}".strip(),
        f"{row.trained.mean:,.0f}" if row.trained else "-",
        size(row.checkpoint.mean) if row.checkpoint else "-",
        duration(row.step.mean) if row.step else "-",
        duration(row.total.mean) if row.total else "-",
        size(row.memory.mean) if row.memory else "-",
    ]


def columns(comparison: Comparison) -> list[str]:
    """Return the names of the columns of :func:`cells`."""
    metric = comparison.metric.replace("/", " ")
    return [metric, "trained", "checkpoint", "step", "total", PEAK]


def comparison_table(comparison: Comparison, width: int = 120) -> Table:
    """Return the comparison as a table for a console.

    Args:
        comparison: The comparison.
        width: The width of the console; a narrow one has no room for all columns.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    every = columns(comparison)
    several = any(len(row.seeds) != 1 for row in comparison.shown if not row.baseline)
    with_runs = several or any(
        row.failed or row.unfinished or row.pruned for row in comparison.shown
    )
    word = longest_word(row.label for row in comparison.shown)

    def build(shown: Sequence[str], label_width: int | None) -> Table:
        lacking = [name for name in every if name not in shown]
        told = notes(comparison, with_memory=PEAK in shown)
        table = Table(
            box=box.SIMPLE_HEAD,
            caption="\n".join([*told, *filter(None, [left_out(lacking, FILE)])]) or None,
            caption_justify="left",
            pad_edge=False,
            collapse_padding=True,
        )
        table.add_column("method", overflow="fold", min_width=word, width=label_width)
        for name in shown:
            table.add_column(name, justify="right", no_wrap=True)
        if with_runs:
            table.add_column("runs", justify="right", no_wrap=True)
        for row in comparison.shown:
            found = dict(zip(every, cells(row, comparison.metric), strict=True))
            texts = [row.label, *(found[name] for name in shown)]
            texts += [runs_of(row)] if with_runs else []
            style = "bold" if row is comparison.leader else "dim" if row.baseline else ""
            table.add_row(*(Text(text) for text in texts), style=style)  # a label is no markup
        return table

    return fitted(build, every, SPARE, word, width)[0]


def more_grids(comparison: Comparison) -> list[Grid]:
    """Return the other tables: by swept numbers, the Pareto set, VTAB-1k."""
    grids = [swept_grid(swept, comparison.metric) for swept in swept_numbers(comparison)]
    if pareto := pareto_set(comparison):
        grids.append(pareto_grid(pareto))
    if means := vtab_means(comparison):
        grids.append(vtab_grid(means))
    return grids


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as plain JSON types (documented in ``docs/compare.md``)."""
    best = comparison.best
    return {
        "format": FORMAT,
        "metric": comparison.metric,
        "lower_is_better": comparison.lower,
        "rows": [_row(row, comparison.metric) for row in comparison.rows],
        "contrasts": [_contrast(contrast) for contrast in comparison.contrasts],
        "swept": [swept_json(swept) for swept in swept_numbers(comparison)],
        "vtab": vtab_json(vtab_means(comparison)),
        "pareto": pareto_json(pareto_set(comparison)),
        "front": [row.label for row in comparison.front()],
        "best": None if best is None else str(best.directory),
        "images": dict(comparison.images),
        "memory_of": comparison.memory or None,
        "unreadable": [str(path) for path in comparison.unreadable],
    }


def as_csv(comparison: Comparison) -> str:
    """Return the rows as CSV: the means, and the metric's deviation and number of seeds."""
    text = io.StringIO()
    writer = RowWriter(text)
    header = [f"{name}{unit}" for name, unit in QUANTITIES.items()]
    writer.writerow(
        ["label", "runs", "failed", "unfinished", "pruned", "seeds", "accuracy_deviation", *header]
    )
    for row in comparison.rows:
        values: list[Spread | None] = [getattr(row, name) for name in QUANTITIES]
        accuracy = row.accuracy
        writer.writerow(
            [
                row.label,
                len(row.seeds),
                len(row.failed),
                len(row.unfinished),
                row.pruned,
                accuracy.count if accuracy else 0,
                accuracy.deviation if accuracy else "",
                *("" if value is None else value.mean for value in values),
            ]
        )
    return text.getvalue()


def _row(row: Row, metric: str) -> dict[str, Any]:
    quantities = {name: _spread(getattr(row, name)) for name in QUANTITIES}
    return {
        "label": row.label,
        "baseline": row.baseline,
        **quantities,
        "seeds": list(row.seeds),
        "accuracy_by_seed": {str(seed): value for seed, value in sorted(row.by_seed.items())},
        "failed": list(row.failed),
        "unfinished": list(row.unfinished),
        "pruned": row.pruned,
        "intervals_95": [
            list(ends) if (ends := run.intervals.get(metric)) else None
            for run in row.runs
            if run.completed
        ],
        "directories": [str(run.directory) for run in row.runs],
    }


def _spread(value: Spread | None) -> dict[str, float] | None:
    if value is None:
        return None
    return {"mean": value.mean, "deviation": value.deviation, "count": value.count}


def _contrast(contrast: Contrast) -> dict[str, Any]:
    return {
        "first": contrast.first,
        "other": contrast.other,
        "test": contrast.test or None,
        "count": contrast.count,
        "difference": contrast.difference,
        "interval_95": None if contrast.interval is None else list(contrast.interval),
        "p": contrast.p,
        "p_holm": contrast.p_holm,
        "why_not": contrast.why_not or None,
    }
