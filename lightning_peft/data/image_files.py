"""Image files as a dataset, and what is done to them in training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_peft._seeds import seeded
from lightning_peft.data.augment import Augment
from lightning_peft.data.sampling import Draw
from lightning_peft.data_config import DataConfig
from lightning_peft.errors import DataError

__all__ = ["ImageFiles", "Label", "training_transform"]

Label = int | float | tuple[float, ...]
"""A class, a number, or one number for each of several labels."""


class ImageFiles(Dataset[tuple[Tensor, Any]]):
    """Image files, transformed when they are asked for.

    Args:
        paths: Image files.
        labels: Of each: its class, its number, or several numbers, which come as a float tensor.
        mode: PIL mode in which they are read, ``"L"`` or ``"RGB"``.
        transform: PIL image to tensor. Drawn from with a seed of (seed, epoch, position) where an
            image is asked for as a :class:`Draw`.
        seed: Seed of the transform.
    """

    def __init__(
        self,
        paths: Sequence[str],
        labels: Sequence[Label],
        *,
        mode: str,
        transform: Callable[[Any], Tensor],
        seed: int = 0,
    ) -> None:
        self.paths = paths
        self.labels = labels
        self.mode = mode
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int | Draw) -> tuple[Tensor, Any]:
        if not isinstance(index, Draw):
            return self.transform(self._read(index)), self._label(index)
        with seeded("augment", self.seed, index.epoch, index.position):
            return self.transform(self._read(index.image)), self._label(index.image)

    def _label(self, index: int) -> Any:
        label = self.labels[index]
        return label if isinstance(label, int) else torch.tensor(label, dtype=torch.float32)

    def _read(self, index: int) -> Any:
        from PIL import Image

        path = self.paths[index]
        try:
            with Image.open(path) as image:
                return image.convert(self.mode)
        except Exception as error:
            raise DataError(
                f"Expected a readable image, got {path}: {type(error).__name__}: {error}. Remove "
                "or repair it; verify='decode' finds all such files before training."
            ) from error


def training_transform(
    config: DataConfig, augment: Augment | Callable[[Tensor], Tensor]
) -> Callable[[Any], Tensor]:
    """Make what turns a PIL image into an augmented tensor ``(C, H, W)``.

    Args:
        config: What the backbone expects.
        augment: What is done to an image in [0, 1] of the backbone's size.
    """
    from torchvision.transforms import v2

    if isinstance(augment, Augment) and augment.crop < 1:
        # the random crop takes the place of evaluation's resize and centre crop
        before: list[Any] = [v2.PILToTensor()]
    else:
        whole: Any = config.eval_transform()
        before = [*whole.transforms[:-2], v2.PILToTensor()]
    change = augment.transform(config.image_size) if isinstance(augment, Augment) else augment
    scaled = v2.ToDtype(torch.float32, scale=True)
    normalise = v2.Normalize(list(config.mean), list(config.std))
    composed: Callable[[Any], Tensor] = v2.Compose([*before, scaled, change, normalise])
    return composed
