"""A comparison that prints as a table, and that a notebook shows."""

from __future__ import annotations

import io
from dataclasses import fields
from pathlib import Path

from lightning_peft.cli.comparing.comparison import Comparison, comparison_of
from lightning_peft.cli.comparing.runs import read_runs
from lightning_peft.cli.comparing.tables import cells, columns, comparison_table, notes, runs_of
from lightning_peft.cli.comparing.wording import told
from lightning_peft.errors import DataError
from lightning_peft.evaluation.html import html_table

__all__ = ["RunComparison", "compare"]


class RunComparison(Comparison):
    """A comparison of runs; ``str(comparison)`` is a table, and so it is in a notebook."""

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(file=io.StringIO(), width=100)
        console.print(comparison_table(self, 100))
        for line in self._tests():
            console.print(line, markup=False, highlight=False)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue().strip("\n")

    def _repr_html_(self) -> str:
        rows = [[row.label, *cells(row, self.metric), runs_of(row)] for row in self.shown]
        names = ["method", *columns(self), "runs"]
        return html_table("Comparison of runs", names, rows, [*notes(self), *self._tests()])

    def _tests(self) -> list[str]:
        return [told(contrast, self.metric) for contrast in self.contrasts]


def compare(*directories: str | Path) -> RunComparison:
    """Compare the runs below directories, as ``lightning-peft compare`` does; nothing is written.

    Args:
        *directories: Directories of sweeps, or above runs.

    Returns:
        The comparison. Its ``rows`` have the mean and the spread of each method, its ``contrasts``
        the tests.

    Raises:
        DataError: If a directory does not exist, or there is no run below them.

    >>> import json, tempfile
    >>> from pathlib import Path
    >>> import lightning_peft as lp
    >>> with tempfile.TemporaryDirectory() as sweep:
    ...     for seed, accuracy in enumerate((0.91, 0.93)):
    ...         run = {"method": {"name": "lora"}, "seed": seed, "status": "completed"}
    ...         run |= {"metrics": {"test/accuracy": accuracy}}
    ...         (Path(sweep) / str(seed)).mkdir()
    ...         path = Path(sweep) / str(seed) / "summary.json"
    ...         _ = path.write_text(json.dumps(run))
    ...     comparison = lp.compare(sweep)
    ...
    >>> comparison.rows[0].label, round(comparison.rows[0].accuracy.mean, 2)
    ('lora', 0.92)
    """
    paths = [Path(directory) for directory in directories]
    wrong = [str(path) for path in paths if not path.is_dir()]
    if wrong or not paths:
        raise DataError(
            "compare: expected directories of runs, got "
            + (f"{', '.join(wrong)}, which do not exist." if wrong else "none.")
        )
    runs, unreadable = read_runs(paths)
    if not runs:
        raise DataError(
            f"compare: expected runs below {' or '.join(map(str, paths))}, got no summary.json "
            "that can be read. By default, runs are in runs/ and sweeps/ of the directory in which "
            "they were started."
        )
    found = comparison_of(runs, unreadable)
    return RunComparison(**{field.name: getattr(found, field.name) for field in fields(found)})
