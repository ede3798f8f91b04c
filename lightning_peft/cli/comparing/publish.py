"""Compare runs, print the tables, and write the files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_peft.cli.comparing.comparison import Comparison, comparison_of
from lightning_peft.cli.comparing.grids import grid_table
from lightning_peft.cli.comparing.runs import read_runs
from lightning_peft.cli.comparing.swept import swept_numbers
from lightning_peft.cli.comparing.tables import as_csv, as_json, comparison_table, more_grids
from lightning_peft.cli.comparing.wording import told
from lightning_peft.cli.runs.summary import write_json, write_text
from lightning_peft.errors import MissingExtraError

__all__ = ["compare"]


def compare(*directories: Path, output: Path | None = None) -> Comparison | None:
    """Compare the runs below directories: print the table, write the files.

    Args:
        *directories: Directories above runs.
        output: The directory for the files; by default the directory of the runs if there is one,
            otherwise ``comparison`` in the working directory.

    Returns:
        The comparison, or ``None`` if there is no run.
    """
    runs, unreadable = read_runs(directories)
    if not runs:
        return None
    comparison = comparison_of(runs, unreadable)
    _publish(comparison, _output(directories, output))
    return comparison


def _output(directories: Sequence[Path], output: Path | None) -> Path:
    if output is not None:
        return output
    return directories[0] if len(directories) == 1 else Path("comparison")


def _publish(comparison: Comparison, output: Path) -> None:
    """Print the table and its notes, and write the files."""
    from rich.console import Console

    console = Console()
    console.print()
    console.print(comparison_table(comparison, console.width))
    for grid in more_grids(comparison):
        console.print(grid_table(grid))
    for contrast in comparison.contrasts:
        console.print(told(contrast, comparison.metric), markup=False, highlight=False)
    for row in comparison.rows:
        for failure in row.failed:
            console.print(
                f"failed: {row.label}, {failure}", style="red", markup=False, soft_wrap=True
            )
        for state in row.unfinished:
            console.print(f"not finished: {row.label}, {state}", style="yellow", markup=False)
    for path in comparison.unreadable:
        console.print(f"not a summary, left out: {path}", style="yellow", markup=False)
    for line in _files(comparison, output):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _files(comparison: Comparison, output: Path) -> list[str]:
    """Write the files, and yield a line for each."""
    from lightning_peft.cli.comparing.charts import against, by_number
    from lightning_peft.cli.comparing.figures import save_figure
    from lightning_peft.cli.comparing.report import report_page

    write_json(output / "comparison.json", as_json(comparison))
    write_text(output / "comparison.csv", as_csv(comparison))
    write_text(output / "report.html", report_page(comparison))
    lines = [f"report     {output / 'report.html'}", f"table      {output / 'comparison.csv'}"]
    try:
        charts = {"comparison": against(comparison, "trained", "trained parameters")}
        for swept in swept_numbers(comparison):
            charts[f"comparison_{swept.name}"] = by_number(comparison, swept)
        paths = [
            save_figure(chart.figure, output / f"{name}.png", chart.keys)
            for name, chart in charts.items()
            if chart is not None
        ]
    except MissingExtraError as error:
        return [*lines, f"no picture: {error}"]
    lines += [f"picture    {path}" for path in paths]
    if comparison.best is not None:
        predictions = comparison.best.directory / "predictions.png"
        if predictions.is_file():
            lines.append(f"picture    {predictions}")
    return lines
