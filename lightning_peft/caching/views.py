"""A data set whose random augmentation repeats itself, so that its features can be cached."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import Dataset

from lightning_peft.errors import DataError
from lightning_peft.system.randomness import mix_seed, seeded

__all__ = ["RepeatedViews"]


class RepeatedViews(Dataset[Any]):
    """Make a randomly augmented data set return the same few views of each sample, in turn.

    In epoch e a sample is augmented as it was in epoch e - ``views``: the random numbers are seeded
    by the seed, the sample and ``e % views``. After ``views`` epochs a feature cache has all of
    them. The price is less variety: in 100 epochs, 8 views show each image in 8 ways, not 100.

    The seed holds for torch's, Python's and numpy's global generators, which the transforms of
    torchvision, timm and albumentations before 2.0 draw from. A data set with its own
    generator does not repeat; the cache then finds no feature twice, and reports it.

    ``FeatureCache`` sets the epoch. Without it, call :meth:`set_epoch` before each epoch. The
    epoch is in shared memory, so persistent workers see it.

    Args:
        dataset: A data set with a length.
        views: Number of views of each sample.
        seed: Seed of the views.

    Raises:
        DataError: If the data set has no length, or ``views`` is not a whole number from 1.

    >>> import random
    >>> import lightning_peft as lp
    >>> class Noisy(list):
    ...     def __getitem__(self, index):
    ...         return random.random()
    ...
    >>> views = lp.RepeatedViews(Noisy([0]), views=2)
    >>> seen = []
    >>> for epoch in range(4):
    ...     views.set_epoch(epoch)
    ...     seen.append(views[0])
    ...
    >>> seen[0] == seen[2], seen[1] == seen[3], seen[0] == seen[1]
    (True, True, False)
    """

    def __init__(self, dataset: Dataset[Any], views: int, seed: int = 0) -> None:
        problems = []
        if not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__"):
            problems.append(
                f"expected a data set with a length and samples by index, got "
                f"{type(dataset).__name__}"
            )
        if isinstance(views, bool) or not isinstance(views, int) or views < 1:
            problems.append(f"expected views to be a whole number from 1, got {views!r}")
        if problems:
            raise DataError("RepeatedViews: " + "; ".join(problems) + ".")
        self.dataset = dataset
        self.views = views
        self.seed = seed
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        """The length of the data set inside."""
        assert isinstance(self.dataset, Sized)
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """Return a sample in the view of the current epoch."""
        with _all_seeded("view", self.seed, int(index), int(self._epoch) % self.views):
            return self.dataset[index]

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that begins, from 0."""
        self._epoch.fill_(epoch)


@contextmanager
def _all_seeded(*keys: int | str) -> Iterator[None]:
    """Seed the global generators of torch (CPU), Python and numpy for a block."""
    import numpy as np

    seed = mix_seed(*keys)
    python, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002 (what transforms use)
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        with seeded(*keys):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)  # noqa: NPY002
