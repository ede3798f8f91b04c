"""Whether two rows differ by more than their seeds do.

Runs of the same seed share their labelled images and the order of their batches, so they are
compared seed by seed: what all methods find hard about a seed drops out.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["FEWEST", "Contrast", "contrast", "holm", "sign_flip_p"]

FEWEST = 3
"""With fewer seeds than this, a test would say nothing."""

ROUNDING = 1e-6
"""Accuracies are counted in float32: differences that vary by less than this do not vary."""

MOST_ENUMERATED = 16
"""Up to so many pairs, every one of the 2^n ways to flip their signs is counted."""

PAIRED, FLIPS, WELCH = "paired t-test", "exact sign-flip test", "Welch's t-test"


@dataclass(frozen=True)
class Contrast:
    """The first row against another one.

    Attributes:
        first: Label of the first row.
        other: Label of the other row.
        test: The test, or ``""`` where none was made.
        count: Pairs of a paired test; for Welch's test the seeds of the smaller side.
        difference: Mean of the first less mean of the other, of the seeds that were tested.
        interval: 95 % confidence interval of the difference, where the test gives one.
        p: Two-sided p-value.
        p_holm: The same, corrected for how many comparisons were made (Holm).
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

    Three seeds or more in both: a paired t-test over them. Where scipy is not installed, or every
    pair differs by the same, an exact sign-flip test, which assumes no distribution but, with
    :math:`n` pairs, gives no p below :math:`2 / 2^n`. Fewer seeds in both, but three or more in
    each: Welch's t-test, which scipy has.

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
        return replace(base, why_not="other seeds, and scipy is not installed")
    a, b = list(values.values()), list(others.values())
    if statistics.pvariance(a) + statistics.pvariance(b) == 0:
        return replace(base, why_not="other seeds, and none of the rows varies over its own")
    result = stats.ttest_ind(a, b, equal_var=False)
    low, high = result.confidence_interval(0.95)
    difference = statistics.fmean(a) - statistics.fmean(b)
    interval = (float(low), float(high))
    return Contrast(first, other, WELCH, fewest, difference, interval, float(result.pvalue))


def holm(contrasts: Sequence[Contrast]) -> tuple[Contrast, ...]:
    """Correct the p-values for their number.

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


def sign_flip_p(differences: Sequence[float]) -> float:
    """Give the exact two-sided p-value of a mean of paired differences.

    If the rows did not differ, each difference could as well have had the other sign: p is the part
    of all ways to choose the signs whose sum is as far from 0 as the one that was found.

    >>> sign_flip_p([0.1, 0.2, 0.3])
    0.25
    """
    found = abs(math.fsum(differences))
    slack = 1e-9 * math.fsum(abs(d) for d in differences)  # sums that differ by rounding are equal
    sums = (
        abs(math.fsum(sign * d for sign, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    )
    return sum(total >= found - slack for total in sums) / 2 ** len(differences)


def _paired(first: str, other: str, a: Sequence[float], b: Sequence[float]) -> Contrast:
    differences = [x - y for x, y in zip(a, b, strict=True)]
    mean = statistics.fmean(differences)
    varies = max(differences) - min(differences) > ROUNDING
    stats = _scipy_stats() if varies else None
    if stats is not None:
        result = stats.ttest_rel(a, b)
        low, high = result.confidence_interval(0.95)
        interval = (float(low), float(high))
        return Contrast(first, other, PAIRED, len(a), mean, interval, float(result.pvalue))
    if len(a) > MOST_ENUMERATED:
        why = "without scipy, more pairs than an exact test can count"
        return Contrast(first, other, count=len(a), difference=mean, why_not=why)
    return Contrast(first, other, FLIPS, len(a), mean, p=sign_flip_p(differences))


def _scipy_stats() -> Any:
    """Give ``scipy.stats``, which comes with the data extra, or ``None``."""
    try:
        from scipy import stats
    except ImportError:
        return None
    return stats
