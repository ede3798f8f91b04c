"""Test whether two rows differ by more than their seeds do.

Runs with the same seed share their labelled images and the order of their batches, so they are
compared seed by seed: the difficulty of a seed, which all methods share, drops out.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["FEWEST", "Contrast", "contrast", "holm"]

FEWEST = 3
"""With fewer seeds than this, a test would say nothing."""

ROUNDING = 1e-6
"""Metrics are float32 numbers: what differs by less than this part of the largest is equal."""

NO_SCIPY = "scipy is not installed (pip install 'lightning-peft[data]')"

PAIRED, FLIPS, WELCH = "paired t-test", "exact sign-flip test", "Welch's t-test"


@dataclass(frozen=True)
class Contrast:
    """The comparison of the first row with another one.

    Attributes:
        first: Label of the first row.
        other: Label of the other row.
        test: The test, or ``""`` where none was made.
        count: Pairs of a paired test; for Welch's test the seeds of the smaller side.
        difference: Mean of the first minus mean of the other, over the tested seeds.
        interval: 95 % confidence interval of the difference, if the test gives one.
        p: Two-sided p-value.
        p_holm: The p-value corrected for the number of comparisons (Holm).
        why_not: Why there is no test.
    """

    first: str
    other: str
    test: str = ""
    count: int = 0
    difference: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    p_holm: float | None = None
    why_not: str = ""


def contrast(
    first: str, other: str, values: Mapping[int, float], others: Mapping[int, float]
) -> Contrast:
    """Compare two rows.

    Three seeds or more in both: a paired t-test over them. Where every pair differs by the same, it
    says nothing: an exact sign-flip test, which assumes no distribution. If the rows did not
    differ, each difference could as well have had the other sign; of the :math:`2^n` ways to choose
    the signs of :math:`n` equal differences, 2 have a sum that is as far from 0. Fewer seeds in
    both, but three or more in each: Welch's t-test. The t-tests are scipy's.

    Args:
        first: Label of the first row.
        other: Label of the other row.
        values: The first row's accuracy by seed.
        others: The other row's.

    Returns:
        The contrast, not yet corrected for others (see :func:`holm`).
    """
    seeds = sorted(values.keys() & others.keys())
    if len(seeds) >= FEWEST:
        return _paired(first, other, [values[s] for s in seeds], [others[s] for s in seeds])
    fewest = min(len(values), len(others))
    differences = [values[seed] - others[seed] for seed in seeds]
    base = Contrast(
        first, other, count=len(seeds), difference=statistics.fmean(differences) if seeds else None
    )
    if fewest < FEWEST:
        return replace(base, why_not=f"too few seeds: {len(seeds)} in both, {FEWEST} are needed")
    if (stats := _scipy_stats()) is None:
        return replace(base, why_not=NO_SCIPY)
    a, b = list(values.values()), list(others.values())
    if not any(_varies(row, _rounding(*a, *b)) for row in (a, b)):
        return replace(base, why_not="other seeds, and none of the rows varies over its own")
    result = stats.ttest_ind(a, b, equal_var=False)
    low, high = result.confidence_interval(0.95)
    difference = statistics.fmean(a) - statistics.fmean(b)
    interval = (float(low), float(high))
    return Contrast(first, other, WELCH, fewest, difference, interval, float(result.pvalue))


def holm(contrasts: Sequence[Contrast]) -> tuple[Contrast, ...]:
    """Return the contrasts with p-values corrected for their number.

    The :math:`i`-th smallest of :math:`m` is multiplied by :math:`m - i + 1`, and is no smaller
    than the one before (Holm, "A simple sequentially rejective multiple test procedure", 1979).

    Args:
        contrasts: All contrasts of one comparison.

    Returns:
        The same, in the same order, with ``p_holm``.
    """
    tested = sorted(
        (i for i, c in enumerate(contrasts) if c.p is not None), key=lambda i: contrasts[i].p or 0.0
    )
    corrected = list(contrasts)
    before = 0.0
    for rank, position in enumerate(tested):
        p = contrasts[position].p
        assert p is not None
        before = max(before, min(1.0, (len(tested) - rank) * p))
        corrected[position] = replace(contrasts[position], p_holm=before)
    return tuple(corrected)


def _paired(first: str, other: str, a: Sequence[float], b: Sequence[float]) -> Contrast:
    differences = [x - y for x, y in zip(a, b, strict=True)]
    mean = statistics.fmean(differences)
    rounding = _rounding(*a, *b)
    if not _varies(differences, rounding):
        p = 2 / 2 ** len(a) if abs(mean) > rounding else 1.0
        return Contrast(first, other, FLIPS, len(a), mean, p=p)
    if (stats := _scipy_stats()) is None:
        return Contrast(first, other, count=len(a), difference=mean, why_not=NO_SCIPY)
    result = stats.ttest_rel(a, b)
    low, high = result.confidence_interval(0.95)
    interval = (float(low), float(high))
    return Contrast(first, other, PAIRED, len(a), mean, interval, float(result.pvalue))


def _rounding(*values: float) -> float:
    return ROUNDING * max(map(abs, values))


def _varies(values: Sequence[float], rounding: float) -> bool:
    return max(values) - min(values) > rounding


def _scipy_stats() -> Any:
    """Return ``scipy.stats``, which comes with the data extra, or ``None``."""
    try:
        from scipy import stats
    except ImportError:
        return None
    return stats
