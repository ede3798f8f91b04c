"""Find the Pareto set of a search with several objectives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning_peft.cli.comparing.comparison import Comparison
from lightning_peft.cli.comparing.grids import Grid
from lightning_peft.cli.comparing.runs import Run
from lightning_peft.cli.config.objectives import COSTS, not_dominated
from lightning_peft.evaluation.metric_names import written

__all__ = ["ParetoSet", "pareto_grid", "pareto_json", "pareto_set"]


@dataclass(frozen=True)
class ParetoSet:
    """The runs of a search that no other run beats.

    Attributes:
        names: The objectives.
        directions: ``"maximize"`` or ``"minimize"``, for each.
        members: The runs of the set with the label of their row, sorted by the first objective.
        count: The number of runs from which they were chosen.
    """

    names: tuple[str, ...]
    directions: tuple[str, ...]
    members: tuple[tuple[str, Run], ...]
    count: int


def pareto_set(comparison: Comparison) -> ParetoSet | None:
    """Return the Pareto set of the completed runs.

    Args:
        comparison: The comparison.

    Returns:
        The set; ``None`` if the runs do not all have the same several objectives.
    """
    runs = [(row.label, run) for row in comparison.rows for run in row.runs if run.completed]
    sought = {tuple((name, way) for name, _, way in run.objectives) for _, run in runs}
    if len(sought) != 1 or len(next(iter(sought))) < 2:
        return None
    names, directions = zip(*next(iter(sought)), strict=True)
    values = [[value for _, value, _ in run.objectives] for _, run in runs]
    members = [runs[i] for i in not_dominated(values, directions)]
    sign = -1 if directions[0] == "maximize" else 1
    members.sort(key=lambda member: sign * member[1].objectives[0][1])
    return ParetoSet(names, directions, tuple(members), len(runs))


def pareto_grid(found: ParetoSet) -> Grid:
    """Return the set as a table, a row for each run."""
    header = ["run"]
    for name, way in zip(found.names, found.directions, strict=True):
        best = "most" if way == "maximize" else "least"
        header.append(f"{name.replace('/', ' ').replace('_', ' ')} ({best})")
    return Grid(
        title=f"Pareto set: {len(found.members)} of {found.count} runs, which no other run beats",
        header=tuple(header),
        rows=tuple(
            (_called(label, run), *(_written(name, value) for name, value, _ in run.objectives))
            for label, run in found.members
        ),
    )


def pareto_json(found: ParetoSet | None) -> dict[str, Any] | None:
    """Return the set as plain JSON types (documented in ``docs/compare.md``)."""
    if found is None:
        return None
    return {
        "objectives": list(found.names),
        "directions": list(found.directions),
        "runs": found.count,
        "members": [
            {
                "label": label,
                "seed": run.seed,
                "values": [value for _, value, _ in run.objectives],
                "directory": str(run.directory),
            }
            for label, run in found.members
        ],
    }


def _called(label: str, run: Run) -> str:
    return label if run.seed is None else f"{label}, seed {run.seed}"


def _written(name: str, value: float) -> str:
    if name.endswith("_seconds"):
        return f"{value:.4g}"
    return f"{value:,.0f}" if name in COSTS else written(name, value)
