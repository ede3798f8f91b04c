"""The objectives of a search, and the direction in which each is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.errors import near
from lightning_peft.evaluation.metric_names import KNOWN, lower_is_better

__all__ = [
    "COSTS",
    "MONITORED",
    "Judge",
    "better",
    "chosen_by",
    "costs_of",
    "directions_of",
    "names_of",
    "not_dominated",
    "unknown_objective",
    "watched_by",
    "watching",
]

COSTS = (
    "trained_parameters",
    "checkpoint_bytes",
    "step_seconds",
    "total_seconds",
    "memory_bytes",
)
"""The costs that can be objectives, by their names in ``comparison.csv``."""

MONITORED = ("step_seconds", "memory_bytes")
"""Costs that ``lightning_peft.EfficiencyMonitor`` measures."""

STAGES = ("val", "test")


def names_of(objective: Any) -> tuple[str, ...]:
    """Read the key ``objective`` of a config: a name, a list of names, or nothing."""
    if objective is None:
        return ()
    return (objective,) if isinstance(objective, str) else tuple(str(name) for name in objective)


def better(name: str) -> str:
    """Return the better direction of an objective, ``"maximize"`` or ``"minimize"``."""
    return "minimize" if name in COSTS or lower_is_better(name) else "maximize"


def chosen_by(config: Any) -> tuple[str | None, str]:
    """Return which metric chooses the checkpoint, according to the callbacks of a config.

    Args:
        config: The config of a job; fitted to the task of its data where that is known.

    Returns:
        The metric, or ``None`` if none is monitored, and its better direction.
    """
    keeping, others = watching(config)
    for node in (*keeping, *others):
        return str(node["monitor"]), "minimize" if node.get("mode") == "min" else "maximize"
    return None, "maximize"


def watching(config: Any) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Return the callbacks of a config that monitor a metric.

    Args:
        config: The config of a job.

    Returns:
        Those that keep checkpoints, and the others, such as early stopping; as in the config.
    """
    nodes = [node for node in (config.get("callbacks") or {}).values() if isinstance(node, Mapping)]
    found = [node for node in nodes if node.get("monitor") is not None]
    keeping = [node for node in found if str(node.get("_target_")).endswith("Checkpoint")]
    return keeping, [node for node in found if node not in keeping]


def unknown_objective(name: str, is_ours: bool) -> str | None:
    """Return what is wrong with the name of an objective, before anything has run.

    Args:
        name: The name.
        is_ours: Whether the module is one of this package, whose metrics are known.

    Returns:
        A sentence, or ``None``.
    """
    stage, _, bare = name.partition("/")
    if not is_ours or name in COSTS or (stage in STAGES and bare in KNOWN):
        return None
    known = [*(f"val/{metric}" for metric in KNOWN), *COSTS]
    return f"objective: expected a metric or a cost of a run, got '{name}'. {near(name, known)}"


def costs_of(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the costs in the summary of a run; those that were not measured are left out."""
    efficiency = summary.get("efficiency") or {}
    seconds = summary.get("seconds") or {}
    gpu = efficiency.get("peak_cuda_bytes")
    found = {
        "trained_parameters": (summary.get("parameters") or {}).get("trained"),
        "checkpoint_bytes": (summary.get("bytes") or {}).get("checkpoint"),
        "step_seconds": seconds.get("step"),
        "total_seconds": seconds.get("total"),
        "memory_bytes": efficiency.get("peak_process_rss_bytes") if gpu is None else gpu,
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def not_dominated(values: Sequence[Sequence[float]], directions: Sequence[str]) -> list[int]:
    """Return the Pareto set: candidates that no other matches in all objectives and beats in one.

    Args:
        values: The objectives of each candidate.
        directions: ``"maximize"`` or ``"minimize"``, for each objective.

    Returns:
        The positions of the candidates in the set, in rising order.
    """
    signs = [-1.0 if direction == "maximize" else 1.0 for direction in directions]
    costs = [[sign * v for sign, v in zip(signs, own, strict=True)] for own in values]

    def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
        return a != b and all(x <= y for x, y in zip(a, b, strict=True))

    return [i for i, own in enumerate(costs) if not any(dominates(o, own) for o in costs)]


def directions_of(direction: Any) -> tuple[str, ...]:
    """Read ``hydra.sweeper.direction``: one or several."""
    if direction is None:
        return ()
    return (direction,) if isinstance(direction, str) else tuple(str(word) for word in direction)


class Judge(NamedTuple):
    """A validation metric, and which of two values is better.

    Attributes:
        metric: Such as ``"val/accuracy"``.
        lower: Whether lower is better.
    """

    metric: str
    lower: bool

    def rank(self, value: float) -> float:
        """Return a number for which more is better."""
        return -value if self.lower else value

    def read(self, metrics: Mapping[str, Any], of: str) -> float:
        """Return the metric from the results of a validation.

        Args:
            metrics: What was found.
            of: What was validated, for the message.

        Raises:
            ConfigError: If the metric is not there, or not a number.
        """
        value = float(metrics.get(self.metric, float("nan")))
        if self.metric not in metrics:
            known = f"{near(self.metric, metrics)} Measured: {', '.join(sorted(metrics))}."
            raise ConfigError([f"expected a metric of the runs, got '{self.metric}'. {known}"])
        if value != value:
            raise ConfigError(
                [
                    f"{self.metric} of {of} is not a number, so it cannot choose. Choose another "
                    "metric with --metric."
                ]
            )
        return value


def watched_by(config: Any) -> Judge | None:
    """Return what chooses the checkpoint of a run: the first ModelCheckpoint with a monitor.

    Args:
        config: The config of the run.

    Returns:
        The metric and its direction; ``None`` if nothing chooses.
    """
    for node in watching(config)[0]:
        return Judge(str(node["monitor"]), str(node.get("mode", "min")) == "min")
    return None
