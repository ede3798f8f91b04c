"""Average runs over the tasks of VTAB-1k: by group and over all tasks, for each method."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lightning_peft.cli.comparing.comparison import Comparison
from lightning_peft.cli.comparing.grids import Grid
from lightning_peft.data.vtab_tasks import GROUPS, TASKS

__all__ = ["VTABMeans", "vtab_grid", "vtab_json", "vtab_means"]

KEY = "data.task"


@dataclass(frozen=True)
class VTABMeans:
    """The results of one method.

    Attributes:
        label: The method, and whatever else distinguishes it.
        by_task: The mean over the seeds, for each task with a result.
    """

    label: str
    by_task: dict[str, float]

    def of(self, group: str) -> float | None:
        """Return the mean of a group; ``None`` if one of its tasks has no result."""
        tasks = [name for name, task in TASKS.items() if task.group == group]
        if not self.by_task.keys() >= set(tasks):
            return None
        return statistics.fmean(self.by_task[name] for name in tasks)

    @property
    def of_groups(self) -> float | None:
        """The mean of the groups' means, which is what most papers call the average."""
        means = [self.of(group) for group in GROUPS]
        found = [mean for mean in means if mean is not None]
        return statistics.fmean(found) if len(found) == len(means) else None

    @property
    def of_tasks(self) -> float | None:
        """The mean over the nineteen tasks, which differs from that of the groups."""
        return statistics.fmean(self.by_task.values()) if len(self.by_task) == len(TASKS) else None


def vtab_means(comparison: Comparison) -> tuple[VTABMeans, ...]:
    """Combine the rows that differ only in the task, if tasks of VTAB-1k were swept.

    Args:
        comparison: The comparison.

    Returns:
        One entry for each method, the best first; empty if no tasks were swept.
    """
    found: dict[str, dict[str, float]] = {}
    for row in comparison.rows:
        words = dict(word.split("=", 1) for word in row.apart if "=" in word)
        task = words.pop(KEY, "")
        if task in TASKS and row.accuracy is not None and not row.baseline:
            label = " ".join([row.name, *(f"{key}={value}" for key, value in words.items())])
            found.setdefault(label, {})[task] = row.accuracy.mean
    means = [VTABMeans(label, by_task) for label, by_task in found.items()]
    return tuple(sorted(means, key=lambda each: -(each.of_groups or 0.0)))


def vtab_grid(means: tuple[VTABMeans, ...]) -> Grid:
    """Return the means as a table, a row for each method."""
    rows = []
    for each in means:
        values = [*(each.of(group) for group in GROUPS), each.of_groups, each.of_tasks]
        texts = [f"{100 * value:.1f} %" if value is not None else "-" for value in values]
        rows.append((each.label, *texts, f"{len(each.by_task)} of {len(TASKS)}"))
    return Grid(
        title="VTAB-1k, mean accuracy",
        header=("method", *GROUPS, "groups", "tasks", "done"),
        rows=tuple(rows),
        note="- where a task has no result; 'groups' is the mean of the three groups, 'tasks' that "
        "of the nineteen tasks",
    )


def vtab_json(means: tuple[VTABMeans, ...]) -> list[dict[str, Any]]:
    """Return the means as plain JSON types (documented in ``docs/compare.md``)."""
    return [dict(_entries(each)) for each in means]


def _entries(each: VTABMeans) -> Iterator[tuple[str, Any]]:
    yield "label", each.label
    yield from ((group, each.of(group)) for group in GROUPS)
    yield "groups", each.of_groups
    yield "tasks", each.of_tasks
    yield "by_task", dict(each.by_task)
