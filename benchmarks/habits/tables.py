"""The tables of the page of habits."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.evidence.summary import HEADLINE, interval
from benchmarks.habits.recipes import HABITS, recipes
from benchmarks.habits.summary import (
    Measured,
    agreement,
    of_checkpoints,
    seeds_of,
    worth,
)
from lightning_peft.cli.comparing.significance import FEWEST, Contrast

__all__ = ["NAMES", "checkpoints", "foretold", "name_of", "ranked", "scores", "told", "values"]

Lines = Sequence[Mapping[str, Any]]

NAMES = {"probe": "probe (the default)", "knn": "5-NN", "logme": "LogME", "h_score": "H-score",
         "nleep": "NLEEP", "parameters": "number of parameters"}  # fmt: skip


def name_of(recipe: str) -> str:
    """Return a recipe in words.

    >>> name_of("not_schedule"), name_of("model_schedule")
    ('all but warm-up and decay', 'the pretrained model, with warm-up and decay')
    """
    if recipe == "none":
        return "none: random weights"
    if recipe == "all":
        return "all"
    first, _, other = recipe.partition("_")
    if first == "not":
        return f"all but {HABITS[other]}"
    return HABITS["model"] + (f", with {HABITS[other]}" if other else " alone")


def told(one: Contrast) -> str:
    """Return a difference with its interval and its p, or with its seeds if they are too few."""
    if one.difference is None:
        return ""
    if one.p_holm is None:
        return f"{one.difference:+.1f} ({one.count} seed{'s' * (one.count > 1)})"
    low, high = one.interval or (one.difference, one.difference)
    return f"{one.difference:+.1f} ({low:+.1f} to {high:+.1f}, p = {one.p_holm:.2g})"


def values(lines: Lines, task: str) -> Iterator[str]:
    """Return the table of what each habit is worth."""
    new = _elsewhere(lines, task)
    yield "| habit | alone | left out |" + " alone, new modules | left out, new modules |" * new
    yield "|---|---|---|" + "---|---|" * new
    here, away = worth(lines, task), worth(lines, task, "elsewhere_") if new else {}
    for habit, pair in here.items():
        row = [told(one) for one in (*pair, *away.get(habit, ()))]
        yield f"| {HABITS[habit]} | " + " | ".join(row) + " |"


def scores(lines: Lines, task: str) -> Iterator[str]:
    """Return the table of scores of the recipes."""
    new = _elsewhere(lines, task)
    yield "| habits | tested | accuracy |" + " new modules |" * new + " seeds |"
    yield "|---|---|---|" + "---|" * (new + 1)
    for recipe in recipes(task):
        found = seeds_of(lines, task, recipe, HEADLINE[task])
        if not found:
            continue
        right = statistics.fmean(seeds_of(lines, task, recipe, "accuracy").values())
        row = [name_of(recipe), _spread(found), f"{right:.1f}"]
        if new:
            row.append(_spread(seeds_of(lines, task, recipe, f"elsewhere_{HEADLINE[task]}")))
        yield "| " + " | ".join([*row, str(len(found))]) + " |"


def checkpoints(lines: Lines, tasks: Sequence[str]) -> Iterator[str]:
    """Return the table that takes the choice of the checkpoint apart."""
    found = {task: of_checkpoints(lines, task) for task in tasks}
    yield "| weights | " + " | ".join(tasks) + " |"
    yield "|---|" + "---|" * len(tasks)
    for words in next(iter(found.values())):
        yield f"| {words} | " + " | ".join(told(found[task][words]) for task in tasks) + " |"


def ranked(of: Measured) -> Iterator[str]:
    """Return the table of the candidates, what fine-tuning reached and their scores."""
    yield "| model | fine-tuned | " + " | ".join(NAMES[name] for name in of.scores) + " |"
    yield "|---|---|" + "---|" * len(of.scores)
    for place in (-of.reached.mean(0)).argsort(kind="stable"):
        reached = dict(enumerate(of.reached[:, place]))
        row = [_score(name, float(table[:, place].mean())) for name, table in of.scores.items()]
        yield f"| `{of.names[place]}` | {_spread(reached)} | " + " | ".join(row) + " |"


def foretold(of: Measured) -> Iterator[str]:
    """Return the table of how well each score foretells fine-tuning."""
    real = {one.score: one for one in agreement(of.without_random())}
    yield "| score | tau | minus the default | real weights only | its first reaches |"
    yield "|---|---|---|---|---|"
    for one in agreement(of):
        ahead = _signed(one.ahead, one.ahead_interval) if one.score != "probe" else ""
        row = [
            NAMES[one.score],
            _signed(one.tau, one.interval),
            ahead,
            _signed(real[one.score].tau, real[one.score].interval),
            f"{one.picked:.1f}",
        ]
        yield "| " + " | ".join(row) + " |"


def _signed(value: float, around: tuple[float, float]) -> str:
    return f"{value:+.2f} ({around[0]:+.2f} to {around[1]:+.2f})"


def _score(name: str, value: float) -> str:
    if name == "parameters":
        return f"{value / 1e6:.2f} M"
    return f"{100 * value:.0f}" if name in ("probe", "knn") else f"{value:.2f}"


def _spread(found: Mapping[int, float]) -> str:
    mean = statistics.fmean(found.values())
    few = len(found) < FEWEST  # of which an interval says nothing
    return f"{mean:.1f}" if few else f"{mean:.1f} ± {interval(list(found.values())):.1f}"


def _elsewhere(lines: Lines, task: str) -> bool:
    return any(bool(seeds_of(lines, task, r, "elsewhere_accuracy")) for r in recipes(task))
