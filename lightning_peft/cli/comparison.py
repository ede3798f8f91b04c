"""From the ``summary.json`` files of many runs to one row for each thing that was compared.

Runs that differ in nothing but the seed are one row: the mean and the standard deviation over the
seeds.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_peft.cli.summary import FILE

__all__ = ["Comparison", "Row", "Spread", "comparison_of", "read_summaries"]

METRICS = ("test/accuracy", "val/accuracy")
"""What a row is judged by: the first of these that the runs have."""

BASELINES = {"nearest_neighbour": "1-NN on pixels", "logistic_regression": "logistic on pixels"}
"""What the reference points are called."""


@dataclass(frozen=True)
class Spread:
    """The mean of a quantity over runs, and its standard deviation (0 for a single run)."""

    mean: float
    deviation: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """Summarise the values that are there; ``None`` where there is none."""
        found = [float(value) for value in values if value is not None]
        if not found:
            return None
        deviation = statistics.stdev(found) if len(found) > 1 else 0.0
        return cls(statistics.fmean(found), deviation, len(found))


@dataclass(frozen=True)
class Row:
    """What was compared, and how it did.

    Attributes:
        label: The method, and what else sets this row apart from the others.
        accuracy: The metric that the comparison is about.
        trained: How many parameters were trained.
        checkpoint: Bytes of a checkpoint of what was trained, without the optimizer's state.
        step: Seconds a training step takes (the median of a run).
        total: Seconds from the start of a job to its end.
        seeds: The seeds of the runs.
        failed: What went wrong in the runs that failed.
        baseline: Whether this is a reference point that trains nothing of the network.
    """

    label: str
    accuracy: Spread | None
    trained: Spread | None = None
    checkpoint: Spread | None = None
    step: Spread | None = None
    total: Spread | None = None
    seeds: tuple[int, ...] = ()
    failed: tuple[str, ...] = ()
    baseline: bool = False


@dataclass(frozen=True)
class Comparison:
    """All rows, the best first, reference points last.

    Attributes:
        metric: The metric that the rows are judged by.
        rows: The rows.
        best: The directory of the best single run.
        images: How many images each split has, where all runs agree.
        unreadable: Files that could not be read.
    """

    metric: str
    rows: tuple[Row, ...]
    best: Path | None = None
    images: Mapping[str, int] = field(default_factory=dict)
    unreadable: tuple[Path, ...] = field(default=())


def read_summaries(directory: Path) -> tuple[list[dict[str, Any]], list[Path]]:
    """Read every ``summary.json`` below a directory.

    Args:
        directory: A sweep's directory, or anything above it.

    Returns:
        The summaries, each with its ``directory``, in the order of their paths; and the files that
        are not summaries.
    """
    summaries, unreadable = [], []
    for path in sorted(directory.rglob(FILE), key=_natural):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            content = None
        if isinstance(content, dict) and "status" in content and "method" in content:
            summaries.append({**content, "directory": path.parent})
        else:
            unreadable.append(path)
    return summaries, unreadable


def comparison_of(
    summaries: Sequence[Mapping[str, Any]], unreadable: Sequence[Path] = ()
) -> Comparison:
    """Compare runs.

    Args:
        summaries: What :func:`read_summaries` gave.
        unreadable: Files that it could not read.

    Returns:
        The comparison.
    """
    metric = next((m for m in METRICS if any(m in _metrics(s) for s in summaries)), METRICS[0])
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for summary in summaries:
        groups.setdefault(_key(summary), []).append(summary)
    shared = set.intersection(*(set(key[1:]) for key in groups)) if groups else set()
    rows = [_row(key, runs, shared, metric) for key, runs in groups.items()]
    rows += _baselines(summaries)
    rows.sort(key=lambda row: (row.baseline, -row.accuracy.mean if row.accuracy else float("inf")))
    scored = [s for s in summaries if _metrics(s).get(metric) is not None]
    best = max(scored, key=lambda s: _metrics(s)[metric], default=None)
    images = [dict(summary["images"]) for summary in summaries if summary.get("images")]
    return Comparison(
        metric=metric,
        rows=tuple(rows),
        best=None if best is None else best.get("directory"),
        images=images[0] if images and all(found == images[0] for found in images) else {},
        unreadable=tuple(unreadable),
    )


def _row(
    key: tuple[str, ...], runs: Sequence[Mapping[str, Any]], shared: set[str], metric: str
) -> Row:
    done = [run for run in runs if run["status"] == "completed"]
    return Row(
        label=" ".join([key[0], *(word for word in key[1:] if word not in shared)]),
        accuracy=Spread.of(_metrics(run).get(metric) for run in done),
        trained=Spread.of(_at(run, "parameters", "trained") for run in done),
        checkpoint=Spread.of(_at(run, "bytes", "checkpoint") for run in done),
        step=Spread.of(_at(run, "seconds", "step") for run in done),
        total=Spread.of(_at(run, "seconds", "total") for run in done),
        seeds=tuple(run["seed"] for run in done),
        failed=tuple(
            f"seed {run['seed']}: {run.get('error', 'unknown error')}{_where(run)}"
            for run in runs
            if run["status"] != "completed"
        ),
    )


def _where(run: Mapping[str, Any]) -> str:
    return f" (in {run['directory']})" if "directory" in run else ""


def _baselines(summaries: Sequence[Mapping[str, Any]]) -> list[Row]:
    """A reference point depends on the data and the seed alone, so it is counted once for each."""
    found: dict[str, dict[tuple[Any, ...], float]] = {}
    for summary in summaries:
        about = tuple(word for word in _overrides(summary) if word.startswith("data"))
        for name, accuracy in (summary.get("baselines") or {}).items():
            found.setdefault(name, {})[(summary["seed"], about)] = accuracy
    return [
        Row(BASELINES.get(name, name), Spread.of(values.values()), baseline=True)
        for name, values in found.items()
    ]


def _key(summary: Mapping[str, Any]) -> tuple[str, ...]:
    """The method's name, and every override that is neither the method nor the seed."""
    others = [o for o in _overrides(summary) if not o.startswith(("method=", "seed="))]
    return (str(_at(summary, "method", "name")), *sorted(others))


def _overrides(summary: Mapping[str, Any]) -> list[str]:
    return [str(override).lstrip("+") for override in summary.get("overrides") or ()]


def _metrics(summary: Mapping[str, Any]) -> Mapping[str, float]:
    return summary.get("metrics") or {}


def _at(summary: Mapping[str, Any], *keys: str) -> Any:
    value: Any = summary
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _natural(path: Path) -> tuple[Any, ...]:
    """Sort ``10_lora`` after ``9_lora``."""
    return tuple(
        (0, int(head), part) if (head := part.partition("_")[0]).isdigit() else (1, 0, part)
        for part in path.parts
    )
