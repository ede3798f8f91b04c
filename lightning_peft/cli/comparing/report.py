"""Write one page with all results of a comparison, which needs nothing but a browser.

Whatever comes from files is untrusted data: the template escapes it, the pictures are built from
XML elements, and the page forbids every script and every request but its own.
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_peft.cli.comparing.charts import (
    Chart,
    Logs,
    against,
    by_number,
    learning_curves,
    rates,
)
from lightning_peft.cli.comparing.classes import ClassTables, class_tables
from lightning_peft.cli.comparing.comparison import Comparison, Row
from lightning_peft.cli.comparing.figures import swatch
from lightning_peft.cli.comparing.reliability import read_bins, reliability_chart
from lightning_peft.cli.comparing.runs import Run
from lightning_peft.cli.comparing.swept import swept_numbers
from lightning_peft.cli.comparing.tables import (
    QUANTITIES,
    cells,
    columns,
    more_grids,
    notes,
    runs_of,
)
from lightning_peft.cli.comparing.wording import difference, p_value, verdict
from lightning_peft.cli.runs.log import read_log
from lightning_peft.errors import MissingExtraError
from lightning_peft.evaluation.metric_names import is_share, written

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["report_page"]

MOST_MATRIX = 30
"""The most classes in a confusion matrix; a larger table is unreadable."""

MOST_MISTAKES = 10
LARGEST_PICTURE = 2_000_000

BREAKS = re.compile(r"(?<=[=/])(?=\S)|(?<=\.)(?=[^\d.\s])")
"""Where a long name may break; a number is not a name and stays in one piece."""

ABOUT_TESTS = (
    "Two-sided tests of the best row against each of the others that had the same training data. "
    "Runs with the same seed share their labelled {noun}, so they are compared in pairs; brackets "
    "hold the 95 % interval of the difference. The corrected p accounts for the number of "
    "comparisons (Holm). The best row was picked because it came first on these very runs, so the "
    "tests favour it; and they say something about other seeds, not about other test {noun}."
)


def report_page(comparison: Comparison) -> str:
    """Return the page of a comparison.

    Args:
        comparison: The comparison.

    Returns:
        A complete HTML document.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=False, keep_trailing_newline=True
    )
    environment.filters.update(
        difference=difference, p_value=p_value, verdict=verdict, breaking=_breaking, swatch=swatch
    )
    script, style = _file("report.js"), _file("report.css")
    # the browser hashes what is between the tags, the line break included
    digest = hashlib.sha256(f"\n{script}".encode()).digest()
    return environment.from_string(_file("report.html.jinja")).render(
        **_content(comparison),
        script=Markup(script),
        style=Markup(style),
        script_hash=f"sha256-{base64.b64encode(digest).decode()}",
    )


def _breaking(text: str) -> Markup:
    """Return names that can break only where their parts end."""
    from markupsafe import Markup

    def one(word: str) -> str | Markup:
        parts = BREAKS.split(word)
        if len(parts) == 1:
            return word
        return Markup('<span class="name">{}</span>').format(Markup("<wbr>").join(parts))

    return Markup("").join(one(word) for word in re.split(r"(\s+)", text))


def _content(comparison: Comparison) -> dict[str, Any]:
    runs = [run for row in comparison.rows for run in row.runs]
    metric = comparison.metric.replace("/", " ")
    leader = comparison.leader
    done = sum(run.completed for run in runs)
    first = f" The first by {metric} is {leader.label}." if leader else ""
    return {
        "title": "Comparison of runs",
        "summary": f"{done} of {len(runs)} runs completed.{first}",
        "notes": notes(comparison),
        "columns": columns(comparison),
        "rows": [_row(rank, row, comparison) for rank, row in enumerate(comparison.shown, 1)],
        "grids": more_grids(comparison),
        "failed": [f"{row.label}, {text}" for row in comparison.rows for text in row.failed],
        "unfinished": [
            f"{row.label}, {text}" for row in comparison.rows for text in row.unfinished
        ],
        "unreadable": [str(path) for path in comparison.unreadable],
        "contrasts": comparison.contrasts,
        "metric": comparison.metric,
        "in_points": is_share(comparison.metric),
        "about_tests": ABOUT_TESTS.format(noun=comparison.noun),
        "noun": comparison.noun,
        "best": None if comparison.best is None else _best(comparison.best, comparison),
        **_pictures(comparison),
    }


def _row(rank: int, row: Row, comparison: Comparison) -> dict[str, Any]:
    means = [getattr(row, name) for name in QUANTITIES]
    values = ["" if value is None else value.mean for value in means]
    style = "leader" if row is comparison.leader else "baseline" if row.baseline else ""
    return {
        "rank": rank,
        "label": row.label,
        "style": style,
        "cells": list(zip(cells(row, comparison.metric), values, strict=True)),
        "runs": runs_of(row),
        "done": len(row.seeds),
    }


def _pictures(comparison: Comparison) -> dict[str, Any]:
    """Return all pictures; without matplotlib, a note on how to install it."""
    best = comparison.best
    try:
        reliability = best and reliability_chart(read_bins(best.directory), best.task, best.noun)
        return {"sections": _sections(comparison), "reliability": reliability, "undrawn": ""}
    except MissingExtraError as error:
        return {"sections": [], "reliability": None, "undrawn": str(error)}
    except Exception as error:  # the tables are worth more than the pictures
        told = f"No pictures: {type(error).__name__}: {error}"
        return {"sections": [], "reliability": None, "undrawn": told}


def _sections(comparison: Comparison) -> list[tuple[str, list[Chart]]]:
    logs: Logs = {
        position: [read_log(run.directory) for run in row.runs]
        for position, row in enumerate(comparison.rows)
        if row.runs
    }
    costs = (("trained", "trained parameters"), ("total", "total time (s)"))
    bare = comparison.metric.partition("/")[2].replace("_", " ").capitalize()
    scatters = [against(comparison, quantity, name) for quantity, name in costs]
    numbers = [by_number(comparison, swept) for swept in swept_numbers(comparison)]
    return [
        ("By what was swept", numbers),
        (f"{bare} and what it costs", [chart for chart in scatters if chart is not None]),
        ("Learning curves", learning_curves(comparison, logs)),
        ("Learning rate", [chart for chart in (rates(comparison, logs),) if chart is not None]),
    ]


def _best(run: Run, comparison: Comparison) -> dict[str, Any]:
    tables = class_tables(run.directory)
    label = next((row.label for row in comparison.rows if run in row.runs), run.method)
    seed = "" if run.seed is None else f", seed {run.seed}"
    metric, value = comparison.metric.replace("/", " "), run.metrics[comparison.metric]
    return {
        "told": f"{label}{seed}: {metric} {written(comparison.metric, value)}.",
        "directory": str(run.directory),
        "noun": run.noun,
        "tables": tables,
        "matrix": _matrix(tables) if tables and len(tables.classes) <= MOST_MATRIX else None,
        "mistakes": tables.mistakes[:MOST_MISTAKES] if tables else (),
        "picture": _picture(run.directory / "predictions.png"),
    }


def _matrix(tables: ClassTables) -> list[tuple[str, list[tuple[int, str, str]]]]:
    """Yield the name of each row and its cells: count, kind, fraction of the row."""
    rows = []
    for i, (scores, counts) in enumerate(zip(tables.classes, tables.confusion, strict=True)):
        total = max(sum(counts), 1)
        kinds = ["none" if not n else "hit" if i == j else "miss" for j, n in enumerate(counts)]
        parts = [f"{count / total:.3f}" for count in counts]
        rows.append((scores.name, list(zip(counts, kinds, parts, strict=True))))
    return rows


def _picture(path: Path) -> str | None:
    """Return a file in base64 if it is a PNG."""
    try:
        if path.stat().st_size > LARGEST_PICTURE:
            return None
        content = path.read_bytes()
    except OSError:
        return None
    return base64.b64encode(content).decode() if content.startswith(b"\x89PNG\r\n") else None


def _file(name: str) -> str:
    return (resources.files("lightning_peft.cli.comparing") / "page" / name).read_text(
        encoding="utf-8"
    )
