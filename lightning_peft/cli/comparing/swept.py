"""Find swept numbers, such as ``shots`` or ``lr``, and the metric by their values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_peft.cli.comparing.comparison import Comparison, Row
from lightning_peft.cli.comparing.grids import Grid
from lightning_peft.cli.comparing.wording import score

__all__ = ["Line", "Swept", "swept_grid", "swept_json", "swept_numbers"]

WIDE_RANGE = 8.0
"""The ratio of the largest to the smallest value from which an axis is logarithmic."""


@dataclass(frozen=True)
class Line:
    """The rows that differ only in the swept number.

    Attributes:
        label: The method, and whatever else distinguishes this line from the others.
        points: Value and row, by rising value; every row has a result.
        baseline: Whether these are reference points.
    """

    label: str
    points: tuple[tuple[float, Row], ...]
    baseline: bool = False


@dataclass(frozen=True)
class Swept:
    """One swept number.

    Attributes:
        key: The override's key.
        lines: The line with the best row first, reference points last.
    """

    key: str
    lines: tuple[Line, ...]

    @property
    def values(self) -> tuple[float, ...]:
        """All values with a result, in rising order."""
        return tuple(sorted({value for line in self.lines for value, _ in line.points}))

    @property
    def is_log(self) -> bool:
        """Whether the values spread so widely that a logarithmic axis suits them better."""
        values = self.values
        return values[0] > 0 and values[-1] / values[0] >= WIDE_RANGE

    @property
    def name(self) -> str:
        """The key as a part of a file name."""
        return "".join(c if c.isalnum() or c in "._-" else "_" for c in self.key)


def swept_numbers(comparison: Comparison) -> tuple[Swept, ...]:
    """Return the swept numbers.

    A key counts if rows that agree in everything else have two or more of its values.

    Args:
        comparison: The comparison.

    Returns:
        One entry for each such key, sorted.
    """
    keys = sorted({key for row in comparison.rows for key, _ in _numbers(row)})
    found = [Swept(key, tuple(_lines(comparison.rows, key))) for key in keys]
    return tuple(swept for swept in found if any(len(own.points) > 1 for own in swept.lines))


def _lines(rows: Sequence[Row], key: str) -> Iterator[Line]:
    groups: dict[tuple[bool, str], list[tuple[float, Row]]] = {}
    for row in rows:  # the best first, so the lines are too
        value = dict(_numbers(row)).get(key)
        if value is not None and row.accuracy is not None:
            rest = [word for word in row.apart if not word.startswith(f"{key}=")]
            groups.setdefault((row.baseline, " ".join([row.name, *rest])), []).append((value, row))
    for (baseline, label), points in groups.items():
        yield Line(label, tuple(sorted(points, key=lambda point: point[0])), baseline)


def _numbers(row: Row) -> Iterator[tuple[str, float]]:
    for word in row.apart:
        key, _, text = word.partition("=")
        try:
            value = float(text)
        except ValueError:
            continue
        if math.isfinite(value):
            yield key, value


def swept_grid(swept: Swept, metric: str) -> Grid:
    """Return a table with a row for each method and a column for each value.

    Args:
        swept: The swept number.
        metric: The metric of the rows.
    """
    rows = []
    for line in swept.lines:
        found = dict(line.points)
        scores = [score(found[v].accuracy, metric) if v in found else "-" for v in swept.values]
        rows.append((line.label, *scores))
    return Grid(
        title=f"{metric.replace('/', ' ')} by {swept.key}",
        header=("method", *(f"{value:g}" for value in swept.values)),
        rows=tuple(rows),
        faint=frozenset(i for i, line in enumerate(swept.lines) if line.baseline),
    )


def swept_json(swept: Swept) -> dict[str, Any]:
    """Return a swept number as plain JSON types (documented in ``docs/compare.md``)."""
    return {
        "key": swept.key,
        "lines": [
            {
                "label": line.label,
                "baseline": line.baseline,
                "points": [{"value": value, "row": row.label} for value, row in line.points],
            }
            for line in swept.lines
        ],
    }
