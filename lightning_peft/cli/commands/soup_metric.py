"""Find the metric by which ``lightning-peft soup`` chooses its members."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.config.objectives import Judge, watched_by
from lightning_peft.evaluation.metric_names import MAIN, is_test, lower_is_better

__all__ = ["judge_of"]


def judge_of(runs: Sequence[tuple[Path, Any]], wanted: str | None, task: str) -> Judge:
    """Return the metric that chooses the members.

    Args:
        runs: Path and config of each checkpoint.
        wanted: The requested metric; by default the one that chose the checkpoints.
        task: The task of the data, whose main metric is taken if nothing chose.

    Returns:
        The metric, and whether lower is better, as in the runs if they monitored it.

    Raises:
        ConfigError: If it is not a validation metric, or the runs do not agree.
    """
    watched = {path: watched_by(config) for path, config in runs}
    known = {judge.metric: judge for judge in watched.values() if judge is not None}
    if wanted is not None:
        _check(wanted, "--metric")
        return known.get(wanted) or Judge(wanted, lower_is_better(wanted))
    different = {judge for judge in watched.values() if judge is not None}
    if len(different) > 1:
        told = "; ".join(
            f"{path}: {judge.metric}, {'lower' if judge.lower else 'higher'} is better"
            for path, judge in watched.items()
            if judge is not None
        )
        raise ConfigError(
            [
                f"the checkpoints were chosen by different metrics ({told}). Choose one with "
                "--metric."
            ]
        )
    if not different:
        main = f"val/{MAIN[task]}"
        return Judge(main, lower_is_better(main))
    (judge,) = different
    _check(judge.metric, "the metric that chose the checkpoints")
    return judge


def _check(metric: str, what: str) -> None:
    if is_test(metric):
        bare = metric.partition("/")[2]
        raise ConfigError(
            [
                f"{what}: '{metric}' is a metric of the test set, which must choose nothing. Use "
                f"'val/{bare}' with --metric."
            ]
        )
    if not metric.startswith("val/"):
        raise ConfigError(
            [
                f"{what}: expected a validation metric, such as val/accuracy, got '{metric}'. "
                "Choose one with --metric."
            ]
        )
