"""Percentile intervals of metrics by resampling the test images.

A resample is represented by how often it holds each image. So a weighted metric is computed for a
thousand resamples in a few tensor operations, and no image goes through a model again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from lightning_peft.errors import DataError
from lightning_peft.system.randomness import generator

__all__ = ["Interval", "Statistics", "intervals", "resamples"]

Interval = tuple[float, float]

Statistics = Callable[[Tensor], Mapping[str, Tensor]]
"""Maps weights ``(R, N)``, how often each of R resamples holds each image, to metrics ``(R,)``."""

_ELEMENTS = 2**21  # weights in memory at once


def resamples(size: int, replicates: int, seed: int) -> Iterator[Tensor]:
    """Resample the images with replacement, keeping their number.

    Args:
        size: Number of images N.
        replicates: Number of resamples.
        seed: Seed of the draws.

    Yields:
        How often each image was drawn, float64, shape ``(R, N)``, in pieces that have
        ``replicates`` rows in total.
    """
    random = generator("bootstrap", seed)
    rows = max(1, _ELEMENTS // size)
    for start in range(0, replicates, rows):
        count = min(rows, replicates - start)
        drawn = torch.randint(size, (count, size), generator=random)
        weights = torch.zeros(count, size, dtype=torch.float64)
        yield weights.scatter_add_(1, drawn, torch.ones_like(weights))


def intervals(
    statistics: Statistics,
    size: int,
    *,
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Compute percentile intervals of metrics.

    Efron, "Bootstrap methods: another look at the jackknife", 1979. The intervals
    describe the variation over other test images from the same source, for this one trained model;
    they do not describe the variation over seeds.

    Args:
        statistics: The metrics of weighted images.
        size: Number of images.
        replicates: Number of resamples.
        level: Fraction of the resamples inside the interval.
        seed: Seed of the draws.

    Returns:
        The lower and upper end for each metric. Resamples for which a metric is undefined (a class
        was not drawn) are skipped; a metric undefined for more than half of them is left out.

    Raises:
        DataError: If there are fewer than 2 images, fewer than 2 resamples, or the level is not
            between 0 and 1.
    """
    wrong = []
    if size < 2:
        wrong.append(f"2 or more images, got {size}")
    if replicates < 2:
        wrong.append(f"2 or more resamples, got {replicates}")
    if not 0 < level < 1:
        wrong.append(f"a level between 0 and 1, got {level}")
    if wrong:
        raise DataError("Expected " + "; ".join(wrong) + ".")
    found: dict[str, list[Tensor]] = {}
    for weights in resamples(size, replicates, seed):
        for name, values in statistics(weights).items():
            found.setdefault(name, []).append(values)
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    result = {}
    for name, pieces in found.items():
        values = torch.cat(pieces).double()
        values = values[values.isfinite()]
        if 2 * len(values) > replicates:
            low, high = torch.quantile(values, ends).tolist()
            result[name] = (low, high)
    return result
