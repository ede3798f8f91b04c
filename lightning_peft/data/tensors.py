"""A dataset of images in memory that returns whole batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_peft.data.augment import Augment
from lightning_peft.data.batched import augment_batch
from lightning_peft.data.sampling import Draw
from lightning_peft.system.randomness import generator, seeded

__all__ = ["TensorImages", "as_is"]


def as_is(batch: Any) -> Any:
    """Return a batch unchanged: the ``collate_fn`` of a dataset that returns batches."""
    return batch


class TensorImages(Dataset[tuple[Tensor, Tensor]]):
    """Images in memory, augmented and normalised a batch at a time.

    A ``DataLoader`` requests all images of a batch at once (``__getitems__``), with
    :func:`as_is` as ``collate_fn``.

    Args:
        images: Float images in [0, 1], shape ``(N, C, H, W)``.
        labels: Class of each image, shape ``(N,)``.
        mean: Mean of each channel.
        std: Standard deviation of each channel.
        augment: The augmentation of images requested as a :class:`Draw`; a plain index gets none.
        seed: Seed of the augmentation.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        augment: Augment | Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        self.images = images
        self.labels = labels
        self.mean = torch.tensor(mean).view(1, -1, 1, 1)
        self.std = torch.tensor(std).view(1, -1, 1, 1)
        self.augment = augment
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int | Draw) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int | Draw]) -> tuple[Tensor, Tensor]:
        draws = [index for index in indices if isinstance(index, Draw)]
        chosen = [index.image if isinstance(index, Draw) else index for index in indices]
        images = self.images[chosen]
        if draws and self.augment is not None:
            images = self._augmented(images, draws)
        return (images - self.mean) / self.std, self.labels[chosen]

    def _augmented(self, images: Tensor, draws: Sequence[Draw]) -> Tensor:
        if isinstance(self.augment, Augment):
            first = draws[0]
            random = generator("augment", self.seed, first.epoch, first.position)
            return augment_batch(images, self.augment, random)
        assert self.augment is not None
        changed = []
        for image, draw in zip(images, draws, strict=True):
            with seeded("augment", self.seed, draw.epoch, draw.position):
                changed.append(self.augment(image))
        return torch.stack(changed)
