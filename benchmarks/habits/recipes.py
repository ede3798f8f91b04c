"""The habits, and the runs that show what each is worth."""

from __future__ import annotations

from typing import Any

from benchmarks.evidence.train import RECIPE

__all__ = ["COMMON", "HABITS", "LABELS", "REGULAR", "TASKS", "contrasts", "habits_of", "recipes"]

HABITS = {
    "model": "the pretrained model",
    "augment": "augmentation",
    "regular": "regularisation",
    "schedule": "warm-up and decay",
    "evaluate": "the choice of the checkpoint",
}
"""By their names in ``examples/habits``, in words."""

TASKS = ("cells", "reviews")
"""The tasks of the evidence that the habits are measured on."""

LABELS = 25
"""Labelled items a class."""

REGULAR: dict[str, float] = {"dropout": 0.1, "label_smoothing": 0.1, "weight_decay": 0.05}
"""Regularisation, as in ``examples/habits``."""

COMMON: dict[str, Any] = {
    "labels": LABELS,
    "rate": 3e-3,
    "regular": REGULAR,
    **{
        task: {name: value for name, value in RECIPE[task].items() if name != "seeds"}
        for task in TASKS
    },
}
"""What all runs have in common."""


def recipes(task: str) -> list[str]:
    """Return the names of the runs: none, the model alone and with one more, all, all but one.

    Of texts there is no augmentation.
    """
    used = [name for name in HABITS if name != "augment" or task == "cells"]
    others = used[1:]
    return [
        "none", "model", *(f"model_{name}" for name in others),
        "all", *(f"not_{name}" for name in used),
    ]  # fmt: skip


def habits_of(recipe: str, task: str) -> frozenset[str]:
    """Return the habits of a run.

    >>> sorted(habits_of("not_model", "reviews"))
    ['evaluate', 'regular', 'schedule']
    """
    used = {name for name in HABITS if name != "augment" or task == "cells"}
    if recipe in ("none", "all"):
        return frozenset(used if recipe == "all" else ())
    first, _, other = recipe.partition("_")
    return frozenset(used - {other}) if first == "not" else frozenset({"model", other} - {""})


def contrasts(task: str) -> dict[str, list[tuple[str, str]]]:
    """Return for each habit the two pairs of runs of which the first has it, the second not.

    Alone: beside the pretrained model and nothing else; the model itself beside nothing. Left out:
    all against all but it.
    """
    names = recipes(task)
    return {
        habit: [("model", "none") if habit == "model" else (f"model_{habit}", "model"),
                ("all", f"not_{habit}")]
        for habit in HABITS
        if f"not_{habit}" in names
    }  # fmt: skip
