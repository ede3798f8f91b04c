"""What ``lightning-peft soup`` chooses its members by: the metric that chose their checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_peft.cli.errors import ConfigError
from lightning_peft.cli.search.objectives import watching
from lightning_peft.errors import near
from lightning_peft.metric_names import MAIN, is_test, lower_is_better

__all__ = ["Judge", "judge_of", "watched_by"]


class Judge(NamedTuple):
    """A validation metric, and which of two values is the better.

    Attributes:
        metric: Such as ``"val/accuracy"``.
        lower: Whether less is better.
    """

    metric: str
    lower: bool

    def rank(self, value: float) -> float:
        """Give a number of which more is better."""
        return -value if self.lower else value

    def read(self, metrics: Mapping[str, Any], of: str) -> float:
        """Take the metric out of what a validation found.

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
                    f"{self.metric} of {of} is not a number: it cannot choose. Say another with "
                    "--metric."
                ]
            )
        return value


def judge_of(runs: Sequence[tuple[Path, Any]], wanted: str | None, task: str) -> Judge:
    """Say by what the members are chosen.

    Args:
        runs: Path and config of each checkpoint.
        wanted: The metric that was asked for; by default the one that chose the checkpoints.
        task: The task of the data, whose main metric it is where nothing chose.

    Returns:
        The metric, and whether less of it is better: as the runs had it, where they watched it.

    Raises:
        ConfigError: If it is no metric of validation, or the runs do not agree.
    """
    watched = {path: watched_by(config) for path, config in runs}
    known = {judge.metric: judge for judge in watched.values() if judge is not None}
    if wanted is not None:
        _check(wanted, "--metric")
        return known.get(wanted) or Judge(wanted, lower_is_better(wanted))
    different = {judge for judge in watched.values() if judge is not None}
    if len(different) > 1:
        told = "; ".join(
            f"{path}: {judge.metric}, {'less' if judge.lower else 'more'} is better"
            for path, judge in watched.items()
            if judge is not None
        )
        raise ConfigError(
            [f"the checkpoints were chosen by different metrics ({told}). Say one with --metric."]
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
                f"{what}: '{metric}' is of the test set, which must choose nothing. Use "
                f"'val/{bare}' with --metric."
            ]
        )
    if not metric.startswith("val/"):
        raise ConfigError(
            [
                f"{what}: expected a metric of validation, such as val/accuracy, got '{metric}'. "
                "Say one with --metric."
            ]
        )


def watched_by(config: Any) -> Judge | None:
    """Say what chooses the checkpoint of a run: the first ModelCheckpoint that watches something.

    Args:
        config: The config of the run.

    Returns:
        The metric and its way; ``None`` where nothing chooses.
    """
    for node in watching(config)[0]:
        return Judge(str(node["monitor"]), str(node.get("mode", "min")) == "min")
    return None
