"""Functions that the benchmarks share: timing variants in turn, and writing figures."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

__all__ = ["CLOCKS", "interleaved", "timed", "write_figures"]

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""What seconds are counted: all that pass, or those of this process on its processors."""


def timed(
    step: Callable[[], None], clock: Callable[[], float] = time.perf_counter
) -> Callable[[], float]:
    """Return a function that runs a step and returns its seconds."""

    def seconds() -> float:
        started = clock()
        step()
        return clock() - started

    return seconds


def interleaved(
    timers: dict[str, Callable[[], float]], rounds: int, base: str = "limit"
) -> dict[str, dict[str, Any]]:
    """Time variants in turn, round by round.

    Args:
        timers: For each variant, what gives the seconds of a step.
        rounds: How many rounds count, after one that warms up.
        base: The variant that ratios are to.

    Returns:
        For each variant the ``times`` and their median ``seconds``, the median ``ratio`` and its
        ``spread`` (least and greatest), ratios being to the base of the same round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    for number in range(rounds + 1):
        for name, timer in timers.items():
            taken = timer()
            if number:
                seconds[name].append(taken)
    figures: dict[str, dict[str, Any]] = {}
    for name, times in seconds.items():
        ratios = [mine / other for mine, other in zip(times, seconds[base], strict=True)]
        figures[name] = {
            "seconds": statistics.median(times),
            "times": times,
            "ratio": statistics.median(ratios),
            "spread": [min(ratios), max(ratios)],
        }
    return figures


def write_figures(options: argparse.Namespace, **found: Any) -> None:
    """Write the options and the figures to ``options.out``, if it is given."""
    if options.out:
        about = {k: v for k, v in vars(options).items() if k not in ("out", "picture", "profile")}
        options.out.write_text(json.dumps({**about, **found}, indent=2) + "\n")
