"""Compare runs, print the tables, and write the files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning_peft.cli.comparing.comparison import Comparison, comparison_of
from lightning_peft.cli.comparing.grids import grid_tables
from lightning_peft.cli.comparing.runs import read_runs
from lightning_peft.cli.comparing.swept import swept_numbers
from lightning_peft.cli.comparing.tables import as_csv, as_json, comparison_table, more_grids
from lightning_peft.cli.comparing.wording import told
from lightning_peft.cli.runs.summary import write_json, write_text
from lightning_peft.cli.trust.printable import printable
from lightning_peft.errors import DiskError, MissingExtraError

__all__ = ["compare", "output_of", "publish"]

log = logging.getLogger(__name__)


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
    publish(comparison, output_of(directories, output))
    return comparison


def output_of(directories: Sequence[Path], output: Path | None) -> Path:
    """Return the directory for the files of a comparison.

    Args:
        directories: The directories that are compared.
        output: The one that was asked for.
    """
    if output is not None:
        return output
    return directories[0] if len(directories) == 1 else Path("comparison")


def publish(comparison: Comparison, output: Path) -> bool:
    """Print the table and its notes, and write the files; what cannot be written is said.

    Args:
        comparison: The comparison.
        output: The directory for the files.

    Returns:
        Whether all files are written.
    """
    from rich.console import Console

    console = Console()
    console.print()
    console.print(comparison_table(comparison, console.width))
    for grid in more_grids(comparison):
        for table in grid_tables(grid, console.width):
            console.print(table)
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
        told_path = printable(str(path))
        console.print(f"not a summary, left out: {told_path}", style="yellow", markup=False)
    lines, whole = _files(comparison, output)
    for line in lines:
        console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
    return whole


def _files(comparison: Comparison, output: Path) -> tuple[list[str], bool]:
    """Write the files; return a line for each, and whether all of them are written."""
    from lightning_peft.cli.comparing.charts import against, by_number
    from lightning_peft.cli.comparing.figures import save_figure
    from lightning_peft.cli.comparing.report import report_page

    lines: list[str] = []
    whole = True

    def tried(name: str, write: Callable[[], Any]) -> bool:
        nonlocal whole
        try:
            write()
        except MissingExtraError as error:
            lines.append(f"no {name}: {error}")
            return False
        except Exception as error:  # what was measured is worth more than a picture of it
            log.debug("no %s", name, exc_info=error)
            told = (
                str(error) if isinstance(error, DiskError) else f"{type(error).__name__}: {error}"
            )
            lines.append(f"no {name}: {told}")
            whole = False
            return False
        return True

    def pictures() -> None:
        charts = {"comparison": against(comparison, "trained", "trained parameters")}
        for swept in swept_numbers(comparison):
            charts[f"comparison_{swept.name}"] = by_number(comparison, swept)
        for name, chart in charts.items():
            if chart is not None:
                path = save_figure(chart.figure, output / f"{name}.png", chart.keys)
                lines.append(f"picture    {path}")

    page, table = output / "report.html", output / "comparison.csv"
    tried("comparison.json", lambda: write_json(output / "comparison.json", as_json(comparison)))
    if tried("report.html", lambda: write_text(page, report_page(comparison))):
        lines.append(f"report     {page}")
    if tried("comparison.csv", lambda: write_text(table, as_csv(comparison))):
        lines.append(f"table      {table}")
    if tried("picture", pictures) and comparison.best is not None:
        predictions = comparison.best.directory / "predictions.png"
        if predictions.is_file():
            lines.append(f"picture    {predictions}")
    return lines, whole
