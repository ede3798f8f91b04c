"""``lightning-peft compare DIR``: one table, one picture, for all runs below a directory."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_peft.cli.comparison import Comparison, Row, Spread, comparison_of, read_summaries
from lightning_peft.cli.summary import write_json, write_text
from lightning_peft.errors import MissingExtraError

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["compare", "comparison_table", "main"]


def main(args: Sequence[str]) -> int:
    """Serve ``lightning-peft compare``.

    Args:
        args: The words after the command.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog="lightning-peft compare",
        description="Compare the runs below a directory: the mean over the seeds of each method, "
        "the best first. Writes comparison.json, comparison.csv and comparison.png there.",
    )
    parser.add_argument("directory", type=Path, help="a sweep's directory, or any above runs")
    try:
        directory = parser.parse_args(list(args)).directory
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    if not directory.is_dir():
        print(f"lightning-peft: expected a directory of runs, got {directory}", file=sys.stderr)
        return 2
    if compare(directory) is None:
        print(
            f"lightning-peft: there is no summary.json below {directory}. Runs are kept in runs/ "
            "and sweeps/ of the directory that they were started in.",
            file=sys.stderr,
        )
        return 2
    return 0


def compare(directory: Path) -> Comparison | None:
    """Compare the runs below a directory: print the table, write the files.

    Args:
        directory: Where the runs are.

    Returns:
        The comparison, or ``None`` where there is no run.
    """
    from rich.console import Console

    summaries, unreadable = read_summaries(directory)
    if not summaries:
        return None
    comparison = comparison_of(summaries, unreadable)
    write_json(directory / "comparison.json", _as_json(comparison))
    write_text(directory / "comparison.csv", _as_csv(comparison))
    console = Console()
    console.print()
    console.print(comparison_table(comparison))
    for row in comparison.rows:
        for failure in row.failed:
            console.print(f"failed: {row.label}, {failure}", style="red", markup=False)
    for path in comparison.unreadable:
        console.print(f"not a summary, left out: {path}", style="yellow", markup=False)
    for line in _pictures(comparison, directory):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return comparison


def _pictures(comparison: Comparison, directory: Path) -> list[str]:
    from lightning_peft.cli.pictures import accuracy_against_parameters

    lines = [f"table      {directory / 'comparison.csv'}"]
    try:
        path = accuracy_against_parameters(comparison, directory / "comparison.png")
    except MissingExtraError as error:
        return [*lines, f"no picture: {error}"]
    if path is not None:
        lines.append(f"picture    {path}")
    if comparison.best is not None:
        predictions = Path(comparison.best) / "predictions.png"
        if predictions.is_file():
            lines.append(f"picture    {predictions}")
    return lines


def comparison_table(comparison: Comparison) -> Table:
    """Lay the comparison out for a console."""
    from rich import box
    from rich.table import Table

    seeds = max((len(row.seeds) for row in comparison.rows), default=0)
    notes = [f"mean ± standard deviation over {seeds} seeds"] if seeds > 1 else []
    if comparison.images:
        train, val, test = (comparison.images.get(s, 0) for s in ("train", "val", "test"))
        chosen = f", {val} others chose the checkpoint" if val else ""
        notes.append(f"{train} labelled images trained{chosen}, {test} tested")
    table = Table(
        box=box.SIMPLE_HEAD,
        caption="\n".join(notes) or None,
        caption_justify="left",
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("method", overflow="fold")
    for name in (comparison.metric.replace("/", " "), "trained", "checkpoint", "step", "total"):
        table.add_column(name, justify="right", no_wrap=True)
    if seeds > 1 or any(row.failed for row in comparison.rows):
        table.add_column("runs", justify="right", no_wrap=True)
    leader = next((row for row in comparison.rows if row.accuracy and not row.baseline), None)
    for row in comparison.rows:
        cells = [row.label, *_cells(row)]
        if len(table.columns) > len(cells):
            cells.append(_runs(row))
        style = "bold" if row is leader else "dim" if row.baseline else None
        table.add_row(*cells, style=style)
    return table


def _cells(row: Row) -> list[str]:
    return [
        percent(row.accuracy),
        f"{row.trained.mean:,.0f}" if row.trained else "-",
        size(row.checkpoint.mean) if row.checkpoint else "-",
        duration(row.step.mean) if row.step else "-",
        duration(row.total.mean) if row.total else "-",
    ]


def _runs(row: Row) -> str:
    if row.baseline:
        return ""
    done = len(row.seeds)
    return f"{done} of {done + len(row.failed)}" if row.failed else str(done)


def percent(value: Spread | None) -> str:
    """Write an accuracy, such as ``"93.4 ± 0.6 %"``."""
    if value is None:
        return "-"
    spread = f" ± {100 * value.deviation:.1f}" if value.count > 1 else ""
    return f"{100 * value.mean:.1f}{spread} %"


def size(count: float) -> str:
    """Write a number of bytes, such as ``"152 kB"``."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.5 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def duration(seconds: float) -> str:
    """Write a time, such as ``"8.1 ms"``, ``"12 s"`` or ``"3 min 20 s"``."""
    if seconds < 1:
        return f"{1000 * seconds:.1f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def _as_json(comparison: Comparison) -> dict[str, Any]:
    return {
        "metric": comparison.metric,
        "rows": [dataclasses.asdict(row) for row in comparison.rows],
        "best": None if comparison.best is None else str(comparison.best),
    }


def _as_csv(comparison: Comparison) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    quantities = ("accuracy", "trained", "checkpoint", "step", "total")
    units = ("", "_parameters", "_bytes", "_seconds", "_seconds")
    header = [f"{name}{unit}" for name, unit in zip(quantities, units, strict=True)]
    writer.writerow(["label", "runs", "failed", "accuracy_deviation", *header])
    for row in comparison.rows:
        values = [getattr(row, name) for name in quantities]
        deviation = row.accuracy.deviation if row.accuracy else ""
        means = ["" if value is None else value.mean for value in values]
        writer.writerow([row.label, len(row.seeds), len(row.failed), deviation, *means])
    return text.getvalue()
