"""Try what LoRA's head may begin with, and its rate: ``python -m benchmarks.evidence.starts``.

A second call goes on where it stopped; ``--only reviews 10`` are tasks and labels a class. The page
of the evidence has the table. Everything is measured on items that are never labelled nor tested.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.evidence.methods import Setting, settings
from benchmarks.evidence.plan import Job, all_chosen, fits
from benchmarks.evidence.run import RESULTS as EVIDENCE
from benchmarks.evidence.run import options_of
from benchmarks.evidence.store import Store
from benchmarks.evidence.summary import HEADLINE
from benchmarks.evidence.tables import told
from benchmarks.evidence.tasks import Task, draw
from lightning_peft.cli.comparing.significance import contrast, holm

__all__ = ["RESULTS", "STARTS", "logistic_head", "main", "table"]

RESULTS = Path("benchmarks/results/evidence_head_starts.jsonl")

STARTS = {
    "linear": "as `nn.Linear`, at the rate of LoRA",
    "ten_times": "as `nn.Linear`, at ten times the rate",
    "probe": "a logistic regression on the frozen features",
}
BUDGETS = (10, 25)
HELD = 300
PENALTIES = np.logspace(-6, 1, 15)
KEYS = ("task", "method", "budget", "seed")

ABOUT = """\
Two things may spare a head that begins at random from being the last to learn: a rate of its own
(`head_lr`), and first weights that a logistic regression on the frozen features has found
(standardised; its penalty by cross-validation of the log loss). Both were tried with LoRA, at the
setting that was chosen for it, on 300 items of the pool that are neither labelled nor tested; of
the reviews none of these is neutral, since the larger draws take all that are
(`python -m benchmarks.evidence.starts`). Neither is better on both tasks, so that no default was
changed. The headline metric in percent, and the difference from the first line of each task and
number of labels, paired by seed, with Holm's p over the table:"""


@dataclasses.dataclass(frozen=True)
class Try:
    """A run: the attributes are those of a line of the results."""

    task: str
    method: str
    budget: int
    seed: int


def tries() -> Iterator[Try]:
    """Return all runs, seed by seed."""
    for seed in range(5):
        for task in ("reviews", "cells"):
            for budget in BUDGETS:
                for start in STARTS:
                    yield Try(task, start, budget, seed)


def held_out(task: Task, seed: int) -> list[int]:
    """Return items of the pool that no run of a seed labels."""
    labelled = {*draw(task, 100, seed)}
    rest = [i for i in task.pool if i not in labelled]
    return [rest[i] for i in np.random.default_rng(seed).permutation(len(rest))[:HELD]]


def logistic_head(features: np.ndarray, labels: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Fit a logistic regression.

    Args:
        features: Shape ``(N, D)``.
        labels: A class for each.

    Returns:
        The weight ``(K, D)`` and the bias ``(K,)`` of a linear layer on features as they are.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(features)
    folds = StratifiedKFold(min(5, int(np.bincount(labels).min())), shuffle=True, random_state=0)
    search = GridSearchCV(
        LogisticRegression(max_iter=2000), {"C": PENALTIES}, scoring="neg_log_loss", cv=folds
    )
    model = search.fit(scaler.transform(features), labels).best_estimator_
    weight, bias = model.coef_, model.intercept_
    if len(weight) == 1:  # the logit of the second of two classes
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / scaler.scale_
    return weight, bias - weight @ scaler.mean_


def measure(one: Try, task: Task, setting: Setting) -> dict[str, Any]:
    """Run, and return its line."""
    from benchmarks.evidence.baselines import frozen_features
    from benchmarks.evidence.train import train

    drawn, begin = draw(task, one.budget, one.seed), None
    if one.method == "ten_times":
        module = {**setting.module, "head_lr": 10 * setting.rate}
        setting = dataclasses.replace(setting, module=module)
    if one.method == "probe":
        labels = [task.labels[i] for i in drawn]
        begin = _with_head(task.classes, *logistic_head(frozen_features(task)[drawn], labels))
    where: dict[str, Any] = {"seed": one.seed, "split": "val", "begin": begin}
    found = train(task, "lora", setting, drawn, held_out(task, one.seed), **where)
    names = ("balanced_accuracy", "f1", "loss", "first_loss", "last_loss")
    kept = {name: found[name] for name in names}
    return {**dataclasses.asdict(one), "settings": str(setting), **kept}


def _with_head(
    classes: Sequence[str], weight: np.ndarray, bias: np.ndarray
) -> Callable[[Any], None]:
    order = [classes.index(name) for name in sorted(classes)]  # the data modules sort classes

    @torch.no_grad()
    def begin(module: Any) -> None:
        model = module.backbone
        head = model.head if hasattr(model, "head") else model.classifier
        head.weight.copy_(torch.as_tensor(weight[order]))
        head.bias.copy_(torch.as_tensor(bias[order]))

    return begin


def table(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Return the section of the page."""
    found: dict[tuple[str, int, str], dict[int, float]] = {}
    for line in lines:
        key = (line["task"], line["budget"], line["method"])
        found.setdefault(key, {})[line["seed"]] = 100 * float(line[HEADLINE[line["task"]]])
    compared = [key for key in found if key[2] != "linear" and (key[0], key[1], "linear") in found]
    contrasts = [
        contrast(key[2], "linear", found[key], found[(*key[:2], "linear")]) for key in compared
    ]
    tests = dict(zip(compared, holm(contrasts), strict=True))
    yield "## The head's own rate and first weights"
    yield ""
    yield from ABOUT.splitlines()
    yield ""
    yield "| task, labels | the head begins | score | difference |"
    yield "|---|---|---|---|"
    for task in ("cells", "reviews"):
        for budget in BUDGETS:
            for start, words in STARTS.items():
                scores = found.get((task, budget, start))
                if scores is None:
                    continue
                test = tests.get((task, budget, start))
                less = told(test).replace(" points", "") if test else ""
                mean = statistics.fmean(scores.values())
                yield f"| {task}, {budget} a class | {words} | {mean:.1f} | {less} |"
    yield ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    from benchmarks.evidence.tasks import load
    from benchmarks.evidence.train import RECIPE

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options = options_of(parser, argv, RESULTS, "tasks, label budgets")
    known = {"cells": "task", "reviews": "task", **{str(n): "budget" for n in BUDGETS}}
    asked = [one for one in tries() if fits(options.only, known, one)]
    base = {one: Job("final", one.task, "lora", one.budget, 0) for one in asked}
    best = all_chosen(Store(EVIDENCE, RECIPE).lines, base.values())
    store = Store(options.out, {"held": HELD, **RECIPE}, KEYS)
    done = store.done()
    todo = [one for one in asked if dataclasses.astuple(one) not in done]
    if options.list:
        print(f"{len(todo)} of {len(asked)} runs left")
        return 0
    tasks = {name: load(name) for name in sorted({one.task for one in todo})}
    for number, one in enumerate(todo, 1):
        print(f"{number} of {len(todo)}  {one}", flush=True)
        setting = settings("lora", one.task)[best[base[one]]]
        store.add(measure(one, tasks[one.task], setting))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
