"""What the results say in sentences, whichever way they go."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.evidence.summary import HEADLINE
from benchmarks.habits.recipes import HABITS, recipes
from benchmarks.habits.summary import Measured, agreement, seeds_of, swapped, worth
from benchmarks.habits.tables import NAMES, told
from lightning_peft.cli.comparing.significance import Contrast

__all__ = ["accuracy_alone", "of_habits", "of_ranking"]

Lines = Sequence[Mapping[str, Any]]

LEVEL = 0.05


def of_habits(lines: Lines, task: str, title: str) -> Iterator[str]:
    """Say what the pretrained model is worth, which other habits show, and which do not."""
    found = worth(lines, task)
    sides = ("alone", "beside the others")
    first = [f"{told(one)} {side}" for side, one in zip(sides, found["model"], strict=True)
             if one.difference is not None]  # fmt: skip
    if first:
        yield f"- **{title}.** The pretrained model is worth {' and '.join(first)}."
    others = {habit: pair for habit, pair in found.items() if habit != "model"}
    shown, not_shown = [], []
    for habit, pair in others.items():
        clear = [
            f"{HABITS[habit]} {side} is worth {told(one)}"
            for side, one in zip(sides, pair, strict=True)
            if _is_clear(one)
        ]
        shown += clear
        if not clear and all(one.p is not None for one in pair):
            not_shown.append(HABITS[habit])
    if shown:
        yield f"  Shown: {'; '.join(shown)}."
    if not_shown:
        yield f"  No difference is shown by {_and(not_shown)}."
    tested = [one for pair in others.values() for one in pair if one.interval]
    if tested:
        halves = sorted((one.interval[1] - one.interval[0]) / 2 for one in tested if one.interval)
        yield (
            f"  With {min(one.count for one in tested)} seeds the intervals of these are "
            f"±{halves[0]:.1f} to ±{halves[-1]:.1f} points: what is smaller could not show."
        )


def of_ranking(of: Measured, title: str) -> Iterator[str]:
    """Say how well the default score foretells, and which others are clearly better or worse."""
    found = agreement(of)
    default, *others = found
    best = max((one for one in found if one.score != "parameters"), key=lambda one: one.tau)
    ahead = [NAMES[one.score] for one in others if one.ahead_interval[0] > 0]
    behind = [NAMES[one.score] for one in others if one.ahead_interval[1] < 0]
    low, high = default.interval
    reached = of.reached.mean(0)
    yield (
        f"- **{title}, {len(of.names)} models.** The default of `rank`, the probe, orders them "
        f"with a tau of {default.tau:+.2f} ({low:+.2f} to {high:+.2f}) and puts models first that "
        f"reach {default.picked:.1f}; the best reaches {reached.max():.1f}, the mean of all "
        f"{reached.mean():.1f}."
    )
    if best is not default:
        low, high = best.ahead_interval
        yield (
            f"  The highest tau has {NAMES[best.score]}, {best.tau:+.2f}: "
            f"{best.ahead:+.2f} from the default ({low:+.2f} to {high:+.2f})."
        )
    clearly = [f"{_and(names)} {word}" for names, word in ((ahead, "better"), (behind, "worse"))
               if names]  # fmt: skip
    said = " and ".join(clearly) + " than the default" if clearly else "none differs from it"
    yield f"  By the intervals: {said}."


def accuracy_alone(lines: Lines, task: str, title: str, metric: str) -> Iterator[str]:
    """Say what would have been concluded from the accuracy."""
    here = [line for line in lines if (line["kind"], line["task"]) == ("habits", task)]
    majority = here[0]["majority"]
    below = [line for line in here if line["accuracy"] < majority]
    yield (
        f"- **{title}.** Always answering the largest class is right on {100 * majority:.1f} %. "
        f"{len(below)} of {len(here)} runs are below that"
        + (
            f", with a {metric.lower() if metric != 'Macro F1' else 'macro F1'} of "
            f"{100 * statistics.fmean(line[HEADLINE[task]] for line in below):.1f} on average"
            if below
            else ""
        )
        + "."
    )
    means = {}
    for recipe in recipes(task):
        if scores := seeds_of(lines, task, recipe, HEADLINE[task]):
            right = seeds_of(lines, task, recipe, "accuracy")
            means[recipe] = (statistics.fmean(scores.values()), statistics.fmean(right.values()))
    other, pairs = swapped(means)
    yield f"  Of the {pairs} pairs of recipes, accuracy puts {other} into the other order."


def _is_clear(one: Contrast) -> bool:
    return one.p_holm is not None and one.p_holm < LEVEL


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
