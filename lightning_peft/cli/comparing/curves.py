"""Combine the curves that runs logged, from the ``metrics.csv`` of Lightning's CSV logger.

The logger begins a new file when a run is resumed, and deletes the one that is there;
:func:`set_aside` keeps it, and :func:`read_log` reads all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lightning_peft.cli.runs.log import Curve

__all__ = ["Band", "band", "thin"]


MOST_POINTS = 200
"""The most points of a curve in a picture."""


@dataclass(frozen=True)
class Band:
    """Curves of several runs combined.

    Attributes:
        mean: The mean over the runs, at the steps where every run has a value.
        low: The lowest of the runs.
        high: The highest of the runs.
    """

    mean: Curve
    low: Curve
    high: Curve


def thin(curve: Curve, most: int = MOST_POINTS) -> Curve:
    """Return a long curve with fewer points, evenly chosen, and its first and last point."""
    if len(curve) <= most:
        return curve
    return tuple(curve[round(i * (len(curve) - 1) / (most - 1))] for i in range(most))


def band(curves: Iterable[Curve]) -> Band | None:
    """Combine the curves of several runs.

    Args:
        curves: One for each run; empty ones are left out.

    Returns:
        The band, or ``None`` if the runs have no step in common.
    """
    tables: Sequence[dict[float, float]] = [dict(curve) for curve in curves if curve]
    if not tables:
        return None
    steps = sorted(set.intersection(*(set(table) for table in tables)))
    if not steps:
        return None
    at = {step: [table[step] for table in tables] for step in steps}
    return Band(
        mean=tuple((step, math.fsum(values) / len(values)) for step, values in at.items()),
        low=tuple((step, min(values)) for step, values in at.items()),
        high=tuple((step, max(values)) for step, values in at.items()),
    )
