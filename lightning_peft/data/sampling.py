"""The order in which training images are drawn, as a function of (seed, epoch, position).

Lightning sets the epoch of a sampler and saves no other state of it. A sampler that is a function
of the epoch therefore continues after a resume as if the run had never stopped; one that draws from
a random generator starts again with the first epoch's order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from lightning_peft.errors import DataError
from lightning_peft.system.randomness import generator

__all__ = ["Draw", "EpochSampler", "ResumableLoader", "loader_options", "train_loader"]


class Draw(NamedTuple):
    """One image to load, and its place in the run, which seeds its augmentation.

    Attributes:
        image: Index of the image.
        epoch: Epoch, from 0.
        position: Place in the epoch's order, counted over all ranks.
    """

    image: int
    epoch: int
    position: int


class EpochSampler(DistributedSampler[Draw]):
    """A sampler that shuffles by (seed, epoch), shards over ranks, and can start mid-epoch.

    It is a ``DistributedSampler``, so Lightning neither wraps nor replaces it under DDP, and sets
    its epoch.

    Args:
        size: Number of images.
        seed: Seed of the order.
        samples: Draws in an epoch, over all ranks; ``size`` by default. More than ``size``
            repeats the images, each pass in another order: all are drawn equally often.
        num_replicas: Number of ranks. The order is repeated from its start until it divides evenly
            among them.
        rank: This rank.
    """

    def __init__(
        self,
        size: int,
        *,
        seed: int = 0,
        samples: int | None = None,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        # the base class only uses the length of its dataset
        super().__init__(range(size), num_replicas, rank, shuffle=True, seed=seed)  # type: ignore[arg-type]
        self.size = size
        self.samples = size if samples is None else samples
        self.num_samples = -(-self.samples // num_replicas)
        self.total_size = self.num_samples * num_replicas
        self.start = 0  # draws of this rank to skip: the loader sets it after a resume

    def __iter__(self) -> Iterator[Draw]:
        random = generator("order", self.seed, self.epoch)
        passes = -(-self.samples // self.size)
        order = torch.cat([torch.randperm(self.size, generator=random) for _ in range(passes)])
        order = order[: self.samples]
        for step in range(self.start, self.num_samples):
            position = step * self.num_replicas + self.rank
            yield Draw(int(order[position % self.samples]), self.epoch, position)


class ResumableLoader(DataLoader[Any]):
    """A loader that skips the batches that a resumed epoch has seen, without loading them.

    Lightning makes the first iterator before it sets the sampler's epoch, which with workers would
    load the first epoch's images again after a resume. So nothing is read before the first batch is
    requested.

    Args:
        *args: As for ``DataLoader``.
        place: Returns the running epoch and how many of its batches are done; ``None`` if nothing
            is trained. It replaces the sampler's epoch from Lightning, which with ``max_steps`` is
            one too many after a resume from a checkpoint that was written after validation.
        **kwargs: As for ``DataLoader``.
    """

    def __init__(
        self, *args: Any, place: Callable[[], tuple[int, int] | None] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.place = place

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return self._batches()

    def _batches(self) -> Iterator[Any]:
        if isinstance(self.sampler, EpochSampler):
            place = None if self.place is None else self.place()
            self.sampler.start = 0
            if place is not None:
                epoch, done = place
                self.sampler.set_epoch(epoch)
                self.sampler.start = done * (self.batch_size or 1)
        yield from super().__iter__()

    # Lightning treats a loader with these two methods as resumable. The place comes from the
    # trainer's own progress, which unlike this state is always restored.
    def state_dict(self) -> dict[str, Any]:
        """Return an empty state: the place in the epoch is part of Lightning's own progress."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing, since the state is empty."""


def train_loader(
    dataset: Any,
    *,
    trainer: Any,
    seed: int,
    batch_size: int,
    steps_per_epoch: int | None,
    **options: Any,
) -> ResumableLoader:
    """Build the training loader of a data module.

    Args:
        dataset: A dataset that takes :class:`Draw` as index.
        trainer: The trainer that the data module is attached to, or None.
        seed: Seed of the order.
        batch_size: Images a batch, on each rank.
        steps_per_epoch: Batches an epoch on each rank; None is one pass over the images.
        **options: As for ``DataLoader``.

    Returns:
        The loader.

    Raises:
        DataError: If ``batch_size`` or ``steps_per_epoch`` is below 1.
    """
    for name, value in (("batch_size", batch_size), ("steps_per_epoch", steps_per_epoch)):
        if value is not None and value < 1:
            raise DataError(f"Expected {name} of 1 or more, got {value}.")
    ranks = (getattr(trainer, "distributed_sampler_kwargs", None) or {}) if trainer else {}
    replicas, rank = ranks.get("num_replicas", 1), ranks.get("rank", 0)
    samples = None if steps_per_epoch is None else steps_per_epoch * batch_size * replicas
    sampler = EpochSampler(
        len(dataset), seed=seed, samples=samples, num_replicas=replicas, rank=rank
    )

    def place() -> tuple[int, int] | None:
        if trainer is None or not trainer.training:
            return None
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return int(trainer.current_epoch), int(done)

    return ResumableLoader(dataset, batch_size=batch_size, sampler=sampler, place=place, **options)


def loader_options(num_workers: int, pin_memory: bool | None) -> dict[str, Any]:
    """Return arguments that every loader of a data module shares.

    Args:
        num_workers: Processes that load.
        pin_memory: Whether to page-lock batches; None does if there is a CUDA device.

    Returns:
        Arguments of ``DataLoader``.
    """
    return {
        "num_workers": num_workers,
        "persistent_workers": num_workers > 0,
        "pin_memory": torch.cuda.is_available() if pin_memory is None else pin_memory,
        # each pass over a loader draws a seed for its workers: not from the global generator, which
        # dropout uses
        "generator": generator("workers"),
    }
