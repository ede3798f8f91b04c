"""Connect a run to the search that it is a trial of: pruning, and the result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.config.objectives import better, chosen_by, costs_of, names_of
from lightning_peft.cli.runs.trial import Trial
from lightning_peft.errors import near

if TYPE_CHECKING:
    from lightning_peft.cli.jobs.pruning import TrialPruning

__all__ = ["check_direction", "pruning_of", "told"]


def pruning_of(cfg: DictConfig, trial: Trial | None) -> TrialPruning | None:
    """Return the callback that stops a hopeless trial, if the search has a pruner."""
    if trial is None or trial.pruner is None:
        return None
    from lightning_peft.cli.jobs.pruning import TrialPruning

    return TrialPruning(trial, next(iter(names_of(cfg.objective)), None))


def check_direction(cfg: DictConfig, trial: Trial | None) -> None:
    """Refuse a search whose default objective has the wrong direction for the task of the data.

    Args:
        cfg: The config, fitted to the task.
        trial: The trial that this run is.

    Raises:
        ConfigError: If the search maximizes what should be minimized, or the other way around.
    """
    if trial is None or cfg.objective is not None or not trial.directions:
        return
    name, _ = chosen_by(cfg)
    if name is not None and better(name) != trial.directions[0]:
        raise ConfigError(
            [
                f"hydra.sweeper.direction: the search would {trial.directions[0]} {name}, but it "
                f"should {better(name)} it. Set hydra.sweeper.direction={better(name)}."
            ]
        )


def told(summary: Mapping[str, Any]) -> float | list[float] | None:
    """Return the result of a finished run for a sweeper.

    Args:
        summary: The result of :func:`~lightning_peft.cli.jobs.outcome.leave_files`.

    Raises:
        ConfigError: If the run has not measured what the config names.
    """
    several = summary.get("objectives")
    values = {one["name"]: one["value"] for one in several or [summary["objective"]]}
    known = [*summary["metrics"], *costs_of(summary)]
    missing = [
        f"objective: expected a metric or a cost of the run, got '{name}'. {near(name, known)}"
        for name, value in values.items()
        if name is not None and value is None
    ]
    if missing:
        raise ConfigError(missing)
    return list(values.values()) if several else next(iter(values.values()))
