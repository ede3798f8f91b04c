"""Find the learning rate of a run by short runs on parts of its training data."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning_peft.errors import ScheduleError
from lightning_peft.lightning.rates.folds import in_folds
from lightning_peft.lightning.rates.trials import Build, RateTrial, tried

__all__ = ["FoundRate", "RateTrial", "find_rate", "grid"]

MOST_STEPS = 100


@dataclasses.dataclass(frozen=True)
class FoundRate:
    """A learning rate, and what it was found by.

    Attributes:
        rate: The rate that was found.
        trials: What each rate came to, the lowest rate first.
        steps: Optimizer steps of each run.
        folds: Runs of each rate.
        seconds: How long all of it took.

    >>> import lightning_peft as lp
    >>> trials = (lp.lightning.rates.trials.RateTrial(1e-3, 0.25, {}, 0.7, 0.1),)
    >>> print(lp.FoundRate(1e-3, trials, steps=60, folds=2, seconds=3.0))
     rate  held-out loss  training loss, first and last steps
    0.001          0.250  0.700 to 0.100  <- found
    """

    rate: float
    trials: tuple[RateTrial, ...]
    steps: int
    folds: int
    seconds: float

    def __str__(self) -> str:
        rows = [("rate", "held-out loss", "training loss, first and last steps")]
        for trial in self.trials:
            mark = "  <- found" if trial.rate == self.rate else ""
            rows.append((f"{trial.rate:g}", _told(trial.loss), _fall(trial) + mark))
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        lines = [f"{one:>{widths[0]}}  {two:>{widths[1]}}  {three}" for one, two, three in rows]
        return "\n".join(lines)


def find_rate(
    build: Build,
    data: Any,
    *,
    start: float = 1e-3,
    rates: Sequence[float] | None = None,
    steps: int = MOST_STEPS,
    folds: int = 2,
    seed: int = 0,
    monitor: str = "val/loss",
    trainer: Mapping[str, Any] | None = None,
    say: Callable[[str], None] | None = None,
) -> FoundRate:
    """Find the learning rate by cross-validation on the training data, in short runs.

    Each rate is trained with on all folds but one, and measured on that one. From ``start`` the
    search goes to lower or higher rates, each about three times the other, as long as the loss
    falls by more than its standard error: three to five rates, most often. So few labels that they
    tell nothing leave the rate as it is. Neither validation nor test data is read.

    The loss of the ready classifiers is the cross entropy at the temperature that suits the
    held-out samples best: few labels make a network overconfident long before it is wrong, and the
    plain loss would choose a rate that learns nothing.

    Rates depend on the number of steps: they are found for runs of about ``steps``, and a much
    longer run may want a lower one.

    Args:
        build: Returns a new module and its callbacks for a rate, the adapter and the schedule among
            them: ``lambda rate: (lp.ImageClassifier("resnet18", 2, lr=rate), [lp.PEFT("lora")])``.
        data: A data module, which is set up, or the loader of the training data. A loader's samples
            are held out as they are, augmented if they are.
        start: Where the search begins.
        rates: The rates to try instead: all of them, and the one with the lowest loss is taken.
        steps: Optimizer steps of each run: those of the real run, or 100 if that is longer.
        folds: Parts of the training data.
        seed: Seed of the division and of each run.
        monitor: The metric, which is to be low, of a module that is none of the ready classifiers.
        trainer: Arguments of the trainer, such as ``precision`` and ``gradient_clip_val``.
        say: Is called with a line for each rate.

    Returns:
        The rate, and what each came to.

    Raises:
        ScheduleError: If an argument is out of range, or no rate trained without diverging.
        DataError: If the data cannot be divided, or the metric is not logged.

    >>> import lightning_peft as lp
    >>> data = lp.DigitsDataModule(labels_per_class=4, val_per_class=0)
    >>> data.setup("fit")
    >>> found = lp.find_rate(
    ...     lambda rate: (lp.ImageClassifier("glyph_vit", 10, lr=rate), [lp.PEFT("linear_probe")]),
    ...     data, rates=[1e-4, 1e-2], steps=5,
    ... )
    >>> found.rate
    0.01
    """
    _check(start, rates, steps, folds)
    began = time.perf_counter()
    parts = in_folds(data, folds, seed)
    settings = dict(trainer or {})
    found: dict[float, RateTrial] = {}

    def trial(rate: float) -> RateTrial:
        if rate not in found:
            at = time.perf_counter()
            found[rate] = tried(
                build, rate, parts, steps=steps, seed=seed, monitor=monitor, trainer=settings
            )
            if say is not None:
                took = time.perf_counter() - at
                say(f"rate {rate:g}: held-out loss {_told(found[rate].loss)} ({took:.0f} s)")
        return found[rate]

    if rates is not None:
        best = min(rates, key=lambda rate: trial(rate).loss)
    else:
        best = _descend(grid(start), lambda rate, than: trial(rate).is_better(trial(than)))
    if not math.isfinite(found[best].loss):
        tried_ = ", ".join(f"{rate:g}" for rate in sorted(found))
        raise ScheduleError(
            f"Expected a rate with which the loss stays finite, got none among {tried_}: look for "
            "what else makes it diverge, such as float16, or values far from 0 in the data."
        )
    trials = tuple(found[rate] for rate in sorted(found))
    return FoundRate(best, trials, steps, folds, time.perf_counter() - began)


def grid(start: float) -> tuple[Sequence[float], int]:
    """Return the rates 1e-6, 3e-6, 1e-5 to 1e-1, and the place of the one nearest to a rate."""
    rates = [float(f"{figure}e{power}") for power in range(-6, -1) for figure in (1, 3)] + [1e-1]
    place = min(range(len(rates)), key=lambda at: abs(math.log(rates[at] / start)))
    return rates, place


def _descend(
    where: tuple[Sequence[float], int], is_better: Callable[[float, float], bool]
) -> float:
    """Go from a place in a grid to a neighbour as long as that one is better."""
    rates, place = where
    for way in (-1, 1):
        moved = False
        while 0 <= place + way < len(rates) and is_better(rates[place + way], rates[place]):
            place, moved = place + way, True
        if moved:
            break
    return rates[place]


def _check(start: float, rates: Sequence[float] | None, steps: int, folds: int) -> None:
    wrong = []
    if rates is not None and len(rates) == 0:
        wrong.append("rates: expected at least one, got none")
    for name, values in (("start", [start]), ("rates", rates or [])):
        if bad := [value for value in values if not 0 < value < math.inf]:
            wrong.append(f"{name}: expected positive numbers, got {', '.join(map(str, bad))}")
    if steps < 1:
        wrong.append(f"steps: expected 1 or more, got {steps}")
    if folds < 2:
        wrong.append(f"folds: expected 2 or more, got {folds}")
    if wrong:
        raise ScheduleError("; ".join(wrong))


def _told(loss: float) -> str:
    return f"{loss:.3f}" if math.isfinite(loss) else "diverged"


def _fall(trial: RateTrial) -> str:
    return f"{trial.first:.3f} to {trial.last:.3f}" if math.isfinite(trial.last) else "diverged"
