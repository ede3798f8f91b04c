"""Ranking backbones by how useful their frozen features are for a task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_peft.errors import DataError, near, require
from lightning_peft.ranking.candidates import Candidate
from lightning_peft.ranking.h_score import h_score
from lightning_peft.ranking.linear_probe import Probe, linear_probe
from lightning_peft.ranking.logme import logme
from lightning_peft.ranking.neighbours import nearest_neighbours
from lightning_peft.ranking.nleep import nleep
from lightning_peft.ranking.sources import BACKBONES_OF, Noun, Skipped
from lightning_peft.system.randomness import generator

__all__ = ["BY", "SCORES", "Ranking", "Row", "Skipped", "chances", "rank_candidates"]

SCORES: dict[str, Callable[[Tensor, Tensor], float]] = {
    "knn": nearest_neighbours,
    "logme": logme,
    "h_score": h_score,
    "nleep": nleep,
}
"""The scores besides the probe, by name; higher is better for all of them."""

BY = ("probe", *SCORES)
"""The criteria of a ranking."""

RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Row:
    """One backbone with its measurements.

    Attributes:
        label: The candidate's name.
        parameters: Parameters without the head.
        milliseconds: Forward time for one image or text on this machine.
        width: Number of features.
        probe: Cross-validated accuracy of the linear probe, in [0, 1].
        deviation: Its standard deviation over the folds.
        first: Fraction of resamples of the images or texts in which its probe is the best, in
            [0, 1].
        scores: The scores by name.
    """

    label: str
    parameters: int
    milliseconds: float
    width: int
    probe: float
    deviation: float
    first: float
    scores: dict[str, float]

    def value(self, by: str) -> float:
        """Return the value that a ranking by this criterion uses."""
        return self.probe if by == "probe" else self.scores[by]


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The backbones, the best first.

    Attributes:
        by: The criterion.
        rows: The backbones.
        skipped: The candidates that exceed a budget or could not be loaded.
        images: Number of labelled images or texts.
        classes: Number of classes.
        folds: Number of folds of the cross-validation.
        noun: ``"images"`` or ``"texts"``.
    """

    by: str
    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...]
    images: int
    classes: int
    folds: int
    noun: Noun = "images"


def rank_candidates(
    candidates: Sequence[Candidate],
    batches_for: Callable[[Candidate], Iterable[Any]],
    *,
    by: str = "probe",
    max_parameters: float | None = None,
    max_milliseconds: float | None = None,
    folds: int = 5,
    seed: int = 0,
    device: torch.device | str = "cpu",
    told: Callable[[str], None] = lambda line: None,
    noun: Noun = "images",
) -> Ranking:
    """Compute the features of each candidate once, and score them.

    Args:
        candidates: The backbones.
        batches_for: Returns the data for a candidate: batches of images ``(B, C, H, W)``, or of its
            tokeniser's output, and labels ``(B,)``, with the same images or texts in the same order
            for all.
        by: The criterion: ``"probe"`` or a name of :data:`SCORES`.
        max_parameters: Leave out backbones with more parameters, without loading them.
        max_milliseconds: Leave out backbones that take longer for an image or text on this machine;
            they are timed before their weights are downloaded.
        folds: Folds of the probe's cross-validation.
        seed: Seed of the folds, of the resampling and of random weights.
        device: The device to compute the features on.
        told: Called with a line whenever a candidate is finished or left out.
        noun: Whether the backbones are for images (timm) or texts (Hugging Face).

    Returns:
        The ranking. Candidates that cannot be loaded are among ``skipped``.

    Raises:
        DataError: If there is no such score, or the data is not suitable.
        MissingExtraError: If scikit-learn is not installed.
    """
    require("sklearn", "data")  # before any features are computed
    if by not in BY:
        raise DataError(f"There is no score '{by}'. {near(by, BY)}")
    source = BACKBONES_OF[noun]
    rows: list[Row] = []
    probes: list[Probe] = []
    skipped: list[Skipped] = []
    labels: Tensor | None = None
    for candidate in candidates:
        budgets = (max_parameters, max_milliseconds)
        measured = source.measure(candidate, batches_for, budgets, seed, device)
        if isinstance(measured, Skipped):
            skipped.append(measured)
            told(f"{measured.label}: left out, {measured.reason}")
            continue
        features, parameters, milliseconds = measured
        if labels is not None and not torch.equal(labels, features.labels):
            raise DataError(
                f"Expected the same {noun} in the same order for every backbone, got other labels "
                f"for {candidate.label}."
            )
        labels = features.labels
        probe = linear_probe(features.values, labels, folds=folds, seed=seed)
        scores = {name: score(features.values, labels) for name, score in SCORES.items()}
        probes.append(probe)
        rows.append(
            Row(
                candidate.label, parameters, milliseconds, features.values.shape[1],
                probe.accuracy, probe.deviation, 0.0, scores,
            )
        )  # fmt: skip
        told(f"{candidate.label}: {100 * probe.accuracy:.1f} % of {len(labels)} {noun}")
    found = chances([probe.correct for probe in probes], seed) if probes else []
    rows = [dataclasses.replace(row, first=first) for row, first in zip(rows, found, strict=True)]
    rows.sort(key=lambda row: (-row.value(by), -row.probe, row.parameters))
    images = 0 if labels is None else len(labels)
    classes = 0 if labels is None else len(labels.unique())
    return Ranking(by, tuple(rows), tuple(skipped), images, classes, folds, noun)


def chances(correct: Sequence[Tensor], seed: int = 0) -> list[float]:
    """Resample the images, and count how often each backbone has the highest accuracy.

    A paired bootstrap (Efron, 1979): all backbones are judged on the same resampled images, so
    images that are hard for all of them do not blur the comparison.

    Args:
        correct: Whether each backbone is correct on each image, one ``(N,)`` per backbone.
        seed: Seed of the resampling.

    Returns:
        The fraction of the resamples in which each is the best; ties are shared.
    """
    table = torch.stack(list(correct)).double()  # (backbones, N)
    n = table.shape[1]
    wins = torch.zeros(len(table), dtype=torch.float64)
    random = generator("bootstrap", seed)
    for _ in range(RESAMPLES):
        # counts of each image in a resample of n with replacement
        drawn = torch.randint(n, (n,), generator=random).bincount(minlength=n).double()
        right = table @ drawn
        best = right == right.max()
        wins += best / best.sum()
    return [float(share) for share in wins / RESAMPLES]
