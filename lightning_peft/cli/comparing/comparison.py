"""Combine many runs into rows to compare.

Runs that differ only in the seed are one row: the mean and the standard deviation over the seeds.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lightning_peft.cli.comparing.runs import Run, labelled
from lightning_peft.cli.comparing.significance import Contrast, contrast, holm
from lightning_peft.evaluation.metric_names import is_share, lower_is_better

__all__ = ["Comparison", "Row", "Spread", "comparison_of"]

METRICS = ("test/accuracy", "val/accuracy", "test/rmse", "val/rmse")
"""The metric of a comparison if the runs do not agree: the first of these that they have."""

OVER = ("completed", "pruned", "failed")
"""The states of a run that has ended."""

BASELINES = {"nearest_neighbour": "1-NN on pixels", "logistic_regression": "logistic on pixels"}
"""The names of the reference points."""


@dataclass(frozen=True)
class Spread:
    """The mean of a quantity, and its standard deviation (0 for a single value)."""

    mean: float
    deviation: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """Return the spread of the values that exist; ``None`` if there are none."""
        found = [float(value) for value in values if value is not None]
        if not found:
            return None
        deviation = statistics.stdev(found) if len(found) > 1 else 0.0
        return cls(statistics.fmean(found), deviation, len(found))


@dataclass(frozen=True)
class Row:
    """A row of a comparison: its label and its results.

    Attributes:
        label: The method, and whatever else distinguishes this row from the others.
        name: The method, or the name of the reference point.
        apart: The overrides that distinguish this row, sorted.
        accuracy: The metric of the comparison, over the seeds.
        trained: The number of trained parameters.
        checkpoint: Bytes of a checkpoint of what was trained, without the optimizer's state.
        step: Seconds a training step takes (the median of a run).
        total: Seconds from the start of a job to its end.
        memory: Bytes at the peak.
        seeds: The seeds of the runs that completed, one for each run.
        failed: The errors of the failed runs.
        unfinished: The states of the runs that are under way, or were interrupted.
        pruned: The number of runs that were stopped by the pruner of their search.
        by_seed: The accuracy of each seed; the mean where a seed ran twice.
        runs: The runs.
        baseline: Whether this is a reference point that trains nothing of the network.
    """

    label: str
    accuracy: Spread | None
    trained: Spread | None = None
    checkpoint: Spread | None = None
    step: Spread | None = None
    total: Spread | None = None
    memory: Spread | None = None
    seeds: tuple[int | None, ...] = ()
    failed: tuple[str, ...] = ()
    unfinished: tuple[str, ...] = ()
    pruned: int = 0
    by_seed: Mapping[int, float] = field(default_factory=dict)
    runs: tuple[Run, ...] = ()
    baseline: bool = False
    name: str = ""
    apart: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """All rows, the best first, reference points last.

    Attributes:
        metric: The metric that the rows are judged by.
        rows: The rows.
        contrasts: The best row of each set of data against each of the others on it.
        best: The best single run.
        images: The number of images in each split, if all runs agree.
        noun: ``"images"``, ``"texts"``, or ``"samples"`` if there are runs on both.
        chosen: Whether the checkpoint of every completed run was chosen by its validation.
        memory: Where the peak memory was measured: ``"GPU"``, ``"process"``, ``"mixed"`` or ``""``.
        unreadable: Files that could not be read.
    """

    metric: str
    rows: tuple[Row, ...]
    contrasts: tuple[Contrast, ...] = ()
    best: Run | None = None
    images: Mapping[str, int] = field(default_factory=dict)
    noun: str = "images"
    chosen: bool = False
    memory: str = ""
    unreadable: tuple[Path, ...] = field(default=())

    @property
    def lower(self) -> bool:
        """Whether lower values of the metric are better."""
        return lower_is_better(self.metric)

    @property
    def scale(self) -> float:
        """The factor of the metric in pictures: 100 for percent."""
        return 100.0 if is_share(self.metric) else 1.0

    @property
    def axis(self) -> str:
        """The name of the metric on an axis."""
        return self.metric.replace("/", " ") + (" (%)" if is_share(self.metric) else "")

    @property
    def leader(self) -> Row | None:
        """The best row that is not a reference point."""
        return next((row for row in self.rows if row.accuracy and not row.baseline), None)

    @property
    def shown(self) -> tuple[Row, ...]:
        """The rows, without those whose runs were all pruned."""
        return tuple(row for row in self.rows if not row.runs or row.pruned < len(row.runs))

    @property
    def same_seeds(self) -> bool:
        """Whether all rows with a result have it for the same seeds."""
        own = [row for row in self.rows if row.accuracy and not row.baseline]
        return all(row.by_seed.keys() == own[0].by_seed.keys() for row in own)

    def front(self, quantity: str = "trained") -> tuple[Row, ...]:
        """Return the rows on the Pareto front: no other row costs no more and is as good.

        Args:
            quantity: The attribute of a row that should be low.

        Returns:
            The rows, the cheapest first.
        """
        costs = [(getattr(row, quantity), row) for row in self.rows if row.accuracy]
        sign = 1.0 if self.lower else -1.0
        # of two that cost the same, the better first: it keeps the other off the front
        rising = sorted(
            (
                (cost.mean, sign * row.accuracy.mean, i)
                for i, (cost, row) in enumerate(costs)
                if cost and row.accuracy
            )
        )
        found: list[Row] = []
        best = 0.0
        for _, badness, position in rising:
            if not found or badness < best:
                best = badness
                found.append(costs[position][1])
        return tuple(found)


def comparison_of(runs: Sequence[Run], unreadable: Sequence[Path] = ()) -> Comparison:
    """Compare runs.

    Args:
        runs: The runs of :func:`~lightning_peft.cli.comparing.runs.read_runs`.
        unreadable: The files that it could not read.

    Returns:
        The comparison.
    """
    done = [run for run in runs if run.completed]
    metric = metric_of(done)
    sign = 1.0 if lower_is_better(metric) else -1.0
    rows = [_row(group, metric) for group in _groups(runs)]
    rows += _baselines(runs) if metric.endswith("/accuracy") else []
    rows.sort(
        key=lambda row: (row.baseline, sign * row.accuracy.mean if row.accuracy else float("inf"))
    )
    scored = [run for run in done if metric in run.metrics]
    images = [run.images for run in runs if run.images]
    nouns = {run.noun for run in done}
    kinds = {"GPU" if run.on_gpu else "process" for run in done if run.peak_memory is not None}
    return Comparison(
        metric=metric,
        rows=tuple(rows),
        contrasts=_contrasts(rows),
        best=min(scored, key=lambda run: sign * run.metrics[metric], default=None),
        images=images[0] if images and all(found == images[0] for found in images) else {},
        noun="samples" if len(nouns) > 1 else next(iter(nouns), "images"),
        chosen=bool(done) and all((run.monitor or "").startswith("val/") for run in done),
        memory="mixed" if len(kinds) > 1 else next(iter(kinds), ""),
        unreadable=tuple(unreadable),
    )


def metric_of(runs: Sequence[Run]) -> str:
    """Return the metric of runs: their objective, on the test set if it was measured there.

    Args:
        runs: Those that completed.

    Returns:
        The metric; if the runs have several objectives or none, accuracy, or for regression the
        error.
    """
    names = {run.objective for run in runs if run.objective is not None}
    found = list(METRICS)
    if len(names) == 1:
        bare = next(iter(names)).partition("/")[2]
        found = [f"test/{bare}", f"val/{bare}", *found]
    return next((m for m in found if any(m in run.metrics for run in runs)), METRICS[0])


class _Group(NamedTuple):
    """Runs that differ only in the seed."""

    method: str
    apart: tuple[str, ...]
    directory: str
    runs: list[Run]


def _groups(runs: Sequence[Run]) -> list[_Group]:
    """Group the runs that differ only in the seed, each group with its label.

    If two of the directories hold the same run with the same seed, something other than an
    override differs (such as the version of the code), and the labels name the directories.
    """
    alike: dict[Any, list[Run]] = {}
    for run in runs:
        alike.setdefault((run.method, run.overrides), []).append(run)
    groups: dict[Any, list[Run]] = {}
    for key, found in alike.items():
        sources: dict[int | None, set[Path]] = {}
        for run in found:
            sources.setdefault(run.seed, set()).add(run.source)
        apart = any(len(where) > 1 for where in sources.values())
        for run in found:
            where = str(run.source) if apart else ""
            groups.setdefault((*key, where), []).append(run)
    shared = set.intersection(*(set(overrides) for _, overrides, _ in groups)) if groups else set()
    return [
        _Group(method, tuple(o for o in overrides if o not in shared), at, found)
        for (method, overrides, at), found in groups.items()
    ]


def _label(method: str, overrides: Sequence[str], at: str) -> str:
    return " ".join([method, *overrides, *([f"({at})"] if at else [])])


def _row(group: _Group, metric: str) -> Row:
    runs = group.runs
    done = [run for run in runs if run.completed]
    values: dict[int, list[float]] = {}
    for run in done:
        if metric in run.metrics and run.seed is not None:
            values.setdefault(run.seed, []).append(run.metrics[metric])
    # a seed that ran twice is still one seed; what ran without one was drawn anew each time
    means = {seed: statistics.fmean(found) for seed, found in values.items()}
    seedless = [run.metrics.get(metric) for run in done if run.seed is None]
    return Row(
        label=_label(group.method, group.apart, group.directory),
        name=group.method,
        apart=group.apart,
        accuracy=Spread.of([*means.values(), *seedless]),
        trained=Spread.of(run.parameters.get("trained") for run in done),
        checkpoint=Spread.of(run.bytes.get("checkpoint") for run in done),
        step=Spread.of(run.seconds.get("step") for run in done),
        total=Spread.of(run.seconds.get("total") for run in done),
        memory=Spread.of(run.peak_memory for run in done),
        seeds=tuple(run.seed for run in done),
        failed=tuple(run.told() for run in runs if run.status == "failed"),
        unfinished=tuple(run.told() for run in runs if run.status not in OVER),
        pruned=sum(run.status == "pruned" for run in runs),
        by_seed=means,
        runs=tuple(runs),
    )


def _contrasts(rows: Sequence[Row]) -> tuple[Contrast, ...]:
    """Return the contrasts of the best row with each of the others that had the same data."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row.accuracy and not row.baseline:
            groups.setdefault(labelled(row.apart), []).append(row)
    return holm(
        [
            contrast(own[0].label, row.label, own[0].by_seed, row.by_seed)
            for own in groups.values()
            for row in own[1:]
        ]
    )


def _baselines(runs: Sequence[Run]) -> list[Row]:
    """Return the reference points, one for each set of data and seed."""
    found: dict[tuple[str, tuple[str, ...]], dict[int | None, float]] = {}
    for run in runs:
        for name, accuracy in run.baselines.items():
            found.setdefault((name, run.about_data), {})[run.seed] = accuracy
    words = [set(about) for _, about in found]
    shared = set.intersection(*words) if words else set()
    # two sets of data that differ in the size of a batch, say, are the same to a reference point
    distinct: dict[Any, tuple[str, tuple[str, ...], Spread | None]] = {}
    for (name, about), values in found.items():
        title, apart = BASELINES.get(name, name), tuple(w for w in about if w not in shared)
        spread = Spread.of(values.values())
        distinct.setdefault((name, frozenset(values.items())), (title, apart, spread))
    titles = [title for title, _, _ in distinct.values()]
    return [
        _reference(title, apart if titles.count(title) > 1 else (), spread)
        for title, apart, spread in distinct.values()
    ]


def _reference(title: str, apart: tuple[str, ...], accuracy: Spread | None) -> Row:
    return Row(" ".join([title, *apart]), accuracy, baseline=True, name=title, apart=apart)
