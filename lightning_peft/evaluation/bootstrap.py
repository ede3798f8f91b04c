"""Percentile intervals of metrics by resampling the test images.

A resample is told by how often it holds each image. So a metric that takes weights is worked out
for a thousand resamples in a few tensor operations, and no image goes through a model again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from lightning_peft.errors import DataError
from lightning_peft.randomness import generator

__all__ = ["Interval", "Statistics", "intervals", "resamples"]

Interval = tuple[float, float]

Statistics = Callable[[Tensor], Mapping[str, Tensor]]
"""Weights ``(R, N)``, how often each of R resamples holds each image, to metrics ``(R,)``."""

_ELEMENTS = 2**21  # of the weights that are held at once


def resamples(size: int, replicates: int, seed: int) -> Iterator[Tensor]:
    """Draw with replacement, as many as there are.

    Args:
        size: Number of images N.
        replicates: Number of resamples.
        seed: Of the draws.

    Yields:
        How often each image was drawn, float64, shape ``(R, N)``: pieces that are
        ``replicates`` rows together.
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
    """Percentile bootstrap (Efron, "Bootstrap methods: another look at the jackknife", 1979).

    It speaks of other test images from where these came, for this one trained model; of other
    seeds it says nothing.

    Args:
        statistics: The metrics of weighted images.
        size: Number of images.
        replicates: Number of resamples.
        level: Part of the resamples that lies within.
        seed: Of the draws.

    Returns:
        The lower and upper end of each metric; a metric that some resample does not have (a class
        was not drawn) is judged by the others, and left out where more than half lack it.

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
