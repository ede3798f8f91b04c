"""What the runs say: what each habit is worth, and how well a score foretells fine-tuning."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.evidence.summary import HEADLINE
from benchmarks.habits.candidates import CANDIDATES, is_random
from benchmarks.habits.recipes import contrasts
from lightning_peft.cli.comparing.significance import Contrast, contrast, holm
from lightning_peft.ranking import SCORES

__all__ = [
    "RANKED_BY", "Agreement", "Measured", "agreement", "measured", "of_checkpoints", "seeds_of",
    "swapped", "tau", "worth",
]  # fmt: skip

Lines = Sequence[Mapping[str, Any]]

RANKED_BY = ("probe", *SCORES, "parameters")
"""The default of ``rank`` first; the number of parameters is none of its scores."""

RESAMPLES = 1000

EVALUATED = ("model_evaluate", "all", "not_augment", "not_regular", "not_schedule")
"""Runs on the pretrained model that hold items out."""


def seeds_of(lines: Lines, task: str, recipe: str, name: str) -> dict[int, float]:
    """Return a metric of a recipe by seed, in percent; what was not measured is left out."""
    wanted = ("habits", task, recipe)
    return {
        line["seed"]: 100 * float(line[name])
        for line in lines
        if (line["kind"], line["task"], line["method"]) == wanted and name in line
    }


def worth(lines: Lines, task: str, prefix: str = "") -> dict[str, tuple[Contrast, Contrast]]:
    """Return for each habit what it adds alone and to all others, paired by seed.

    Args:
        lines: The results.
        task: The task.
        prefix: ``"elsewhere_"`` for items from elsewhere.

    Returns:
        Contrasts in points, corrected for their number (Holm).
    """
    name = prefix + HEADLINE[task]
    pairs = contrasts(task)
    found = iter(
        holm(
            [
                contrast(a, b, seeds_of(lines, task, a, name), seeds_of(lines, task, b, name))
                for both in pairs.values()
                for a, b in both
            ]
        )
    )
    return {habit: (next(found), next(found)) for habit in pairs}


def of_checkpoints(lines: Lines, task: str) -> dict[str, Contrast]:
    """Take the choice of the checkpoint apart: what the choice adds, and what the held items cost.

    Averaged over the recipes with the pretrained model that have both sides, paired by seed.

    Returns:
        Contrasts in points, corrected for their number (Holm).
    """
    name = HEADLINE[task]
    last = f"last_weights_{name}"
    pairs: dict[str, list[tuple[str, str, str, str]]] = {
        "by balanced accuracy, minus the last weights": [(r, name, r, last) for r in EVALUATED],
        "by loss, minus the last weights": [(r, f"by_loss_{name}", r, last) for r in EVALUATED],
        "last weights of four fifths of the labels, minus those of all": [
            ("model_evaluate", last, "model", name), ("all", last, "not_evaluate", name),
        ],
    }  # fmt: skip
    found = []
    for words, rows in pairs.items():
        sides = [(seeds_of(lines, task, a, x), seeds_of(lines, task, b, y)) for a, x, b, y in rows]
        sides = [(first, other) for first, other in sides if first and other]
        found.append(contrast(words, "", *(_mean([pair[i] for pair in sides]) for i in (0, 1))))
    return {one.first: one for one in holm(found)}


def _mean(rows: Sequence[Mapping[int, float]]) -> dict[int, float]:
    shared = set.intersection(*(set(row) for row in rows)) if rows else set()
    return {seed: statistics.fmean(row[seed] for row in rows) for seed in sorted(shared)}


def swapped(scores: Mapping[str, tuple[float, float]]) -> tuple[int, int]:
    """Return how many pairs the two numbers of each name order differently, and all pairs."""
    values = list(scores.values())
    pairs = [(a, b) for i, a in enumerate(values) for b in values[:i]]
    return sum((a[0] - b[0]) * (a[1] - b[1]) < 0 for a, b in pairs), len(pairs)


@dataclasses.dataclass(frozen=True)
class Measured:
    """The candidates of a task with scores and what fine-tuning reached.

    Attributes:
        names: The candidates.
        seeds: The seeds that all of them have.
        scores: By name of the score, ``(seeds, candidates)``.
        reached: The headline metric after fine-tuning in percent, ``(seeds, candidates)``.
    """

    names: tuple[str, ...]
    seeds: tuple[int, ...]
    scores: Mapping[str, np.ndarray]
    reached: np.ndarray

    def without_random(self) -> Measured:
        """Return the candidates with real weights."""
        kept = [i for i, name in enumerate(self.names) if not is_random(name)]
        return Measured(
            tuple(self.names[i] for i in kept),
            self.seeds,
            {name: values[:, kept] for name, values in self.scores.items()},
            self.reached[:, kept],
        )


def measured(lines: Iterable[Mapping[str, Any]], task: str) -> Measured | None:
    """Collect what was ranked, of the seeds that every candidate has; None without any."""
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for line in lines:
        if (line["kind"], line["task"]) == ("rank", task):
            found.setdefault(line["method"], {})[line["seed"]] = line
    names = [name for name in CANDIDATES[task] if name in found]
    seeds = sorted(set.intersection(*(set(found[name]) for name in names))) if names else []
    if len(names) < 3 or not seeds:
        return None

    def table(key: str) -> np.ndarray:
        return np.array([[float(found[name][seed][key]) for name in names] for seed in seeds])

    scores = {name: table(f"score_{name}") for name in RANKED_BY}
    return Measured(tuple(names), tuple(seeds), scores, 100 * table(HEADLINE[task]))


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How well a score foretells what fine-tuning reaches.

    Attributes:
        score: Its name.
        tau: Kendall's tau with what the candidates reach on average over the seeds; the mean over
            the seeds' scores.
        interval: Its 95 % interval.
        ahead: Its tau minus that of the default.
        ahead_interval: The 95 % interval of this.
        picked: What the candidates with the highest score reach, in percent, mean over the seeds.
    """

    score: str
    tau: float
    interval: tuple[float, float]
    ahead: float
    ahead_interval: tuple[float, float]
    picked: float


def agreement(of: Measured, resamples: int = RESAMPLES) -> list[Agreement]:
    """Compare the scores, with intervals from a bootstrap over candidates and seeds.

    All scores are judged on the same resamples (a paired percentile bootstrap; Efron, 1979).

    Args:
        of: The candidates.
        resamples: Number of resamples.

    Returns:
        One agreement for each score, the default's first.
    """
    random = np.random.default_rng(0)
    seeds, count = of.reached.shape
    drawn = random.integers(count, size=(resamples, count))
    counts = np.stack([np.bincount(row, minlength=count) for row in drawn])
    chosen = random.integers(seeds, size=(resamples, seeds))
    every, each = np.ones((1, count)), np.arange(seeds)[None]
    points = {n: float(tau(s, of.reached, every, each)[0]) for n, s in of.scores.items()}
    spread = {n: tau(s, of.reached, counts, chosen) for n, s in of.scores.items()}
    base = RANKED_BY[0]
    mean = of.reached.mean(0)
    return [
        Agreement(
            name,
            points[name],
            _interval(spread[name]),
            points[name] - points[base],
            _interval(spread[name] - spread[base]),
            float(mean[of.scores[name].argmax(1)].mean()),
        )
        for name in of.scores
    ]


def tau(
    scores: np.ndarray, reached: np.ndarray, counts: np.ndarray, seeds: np.ndarray
) -> np.ndarray:
    r"""Return Kendall's :math:`\tau_b` for each resample, the mean over its seeds.

    Two copies of a candidate are tied in both, which :math:`\tau_b` leaves out.

    Args:
        scores: Shape ``(S, N)``.
        reached: Shape ``(S, N)``; its mean over the drawn seeds is what is foretold.
        counts: How often each candidate is in each resample, ``(R, N)``.
        seeds: The drawn seeds, ``(R, S)``.

    Returns:
        Shape ``(R,)``; NaN where everything is tied.
    """
    pairs = np.einsum("ri,rj->rij", counts, counts)[:, None].astype(float)
    mean = reached[seeds].mean(1)
    wanted = np.sign(mean[:, :, None] - mean[:, None, :])[:, None]
    given = np.sign(scores[:, :, None] - scores[:, None, :])[seeds]  # (R, S, N, N)
    agreed = (pairs * given * wanted).sum((2, 3))
    untied = (pairs * given**2).sum((2, 3)) * (pairs * wanted**2).sum((2, 3))
    found: np.ndarray = np.where(untied > 0, agreed / np.sqrt(np.maximum(untied, 1)), np.nan)
    return found.mean(1)


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)
