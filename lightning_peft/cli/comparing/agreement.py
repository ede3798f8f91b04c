"""Measure whether scores of frozen features predict the results of fine-tuning.

Runs that fine-tuned the same models show which was best; the rank correlation shows how far a score
orders the models in the same way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from lightning_peft.cli.comparing.comparison import METRICS
from lightning_peft.cli.comparing.runs import read_runs
from lightning_peft.cli.trust.recorded import parse_plain
from lightning_peft.errors import DataError, require
from lightning_peft.files.plain_file import read_text
from lightning_peft.ranking.candidates import Candidate
from lightning_peft.ranking.rank import BY, Ranking

__all__ = ["Agreement", "agreements", "fine_tuned"]

LEAST_MODELS = 3
"""Two models agree or they do not: a correlation says nothing."""


class Agreement(NamedTuple):
    """How well the order of one score agrees with that of fine-tuning by one method.

    Attributes:
        method: The method of the fine-tuning.
        score: The score.
        models: The number of models that both have.
        kendall: Kendall's tau, in [-1, 1].
        spearman: Spearman's rho, in [-1, 1].
    """

    method: str
    score: str
    models: int
    kendall: float
    spearman: float


def fine_tuned(directory: Path) -> dict[str, dict[str, float]]:
    """Return the mean accuracy of fine-tuning over the runs, by method and model.

    Args:
        directory: A directory above runs.

    Returns:
        For each method the accuracy of each model; models are named as in ``rank``.

    Raises:
        DataError: If there is no completed run with an accuracy.
    """
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in read_runs([directory])[0]:
        values = (run.metrics.get(name) for name in METRICS)
        accuracy = next((value for value in values if value is not None), None)
        model = _model_of(run.directory / "config.yaml")
        if run.completed and accuracy is not None and model is not None:
            found[run.method][model].append(accuracy)
    if not found:
        raise DataError(
            f"Expected runs of fine-tuning below {directory} (summary.json and config.yaml), got "
            "none that was completed and has an accuracy."
        )
    return {
        method: {model: fmean(values) for model, values in models.items()}
        for method, models in found.items()
    }


def agreements(ranking: Ranking, directory: Path) -> list[Agreement]:
    """Return the correlation of every score with the accuracies of fine-tuning.

    Args:
        ranking: The scores.
        directory: The runs.

    Returns:
        One agreement for each method and score.

    Raises:
        DataError: If there are no runs, or no method has three models in common with the ranking.
        MissingExtraError: If SciPy is not installed.
    """
    require("scipy.stats", "data")  # before the runs are read
    measured = fine_tuned(directory)
    found = [row for method in sorted(measured) for row in _of(ranking, method, measured[method])]
    if not found:
        shared = {m: sum(_key(r.label) in models for r in ranking.rows) for m, models in
                  measured.items()}  # fmt: skip
        counts = ", ".join(f"{count} with {method}" for method, count in sorted(shared.items()))
        raise DataError(
            f"Expected {LEAST_MODELS} or more models that were ranked and fine-tuned with the same "
            f"method, got {counts} in {directory}."
        )
    return found


def _of(ranking: Ranking, method: str, accuracy: dict[str, float]) -> Iterator[Agreement]:
    stats = require("scipy.stats", "data")
    for score in BY:
        pairs = [
            (row.value(score), accuracy[_key(row.label)])
            for row in ranking.rows
            if _key(row.label) in accuracy
        ]
        scores, measured = zip(*pairs, strict=True) if pairs else ((), ())
        if len(pairs) < LEAST_MODELS or len(set(scores)) < 2 or len(set(measured)) < 2:
            continue  # of values that are all the same there is no order
        kendall = float(stats.kendalltau(scores, measured).statistic)
        spearman = float(stats.spearmanr(scores, measured).statistic)
        yield Agreement(method, score, len(pairs), kendall, spearman)


def _model_of(path: Path) -> str | None:
    """Return the name of a run's model as in ``rank``; ``None`` if the config does not say."""
    from omegaconf import OmegaConf

    if not path.is_file():
        return None
    try:
        config: Any = OmegaConf.to_container(parse_plain(read_text(path)))
        model = config["model"]
        options = model.get("backbone_kwargs") or {}
        file = (options.get("pretrained_cfg_overlay") or {}).get("file")
        weights = "pretrained" if file is None else str(file)
        if model.get("pretrained") is False:
            weights = "random"
        return _key(Candidate(str(model["backbone"]), weights).label)
    except Exception:  # a config of another program, or one that was cut off
        return None


def _key(label: str) -> str:
    """Return the same name for the same file, however its path is written."""
    candidate = Candidate.parse(label)
    return label if candidate.file is None else f"{candidate.name}:{candidate.file.resolve()}"
