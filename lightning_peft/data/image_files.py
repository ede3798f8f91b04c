"""Image files as a dataset, and their transforms in training and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_peft.backbones.data_config import DataConfig
from lightning_peft.data.augment import Augment
from lightning_peft.data.decode import Decoding, decode
from lightning_peft.data.decoded import DecodedImages, Shape
from lightning_peft.data.sampling import Draw
from lightning_peft.system.randomness import seeded

__all__ = ["ImageFiles", "ImageTransform", "Label", "evaluation_transform", "training_transform"]

Label = int | float | tuple[float, ...]
"""A class, a number, or one number for each of several labels."""


@dataclass(frozen=True)
class ImageTransform:
    """A transform of a PIL image to a normalised tensor, in two parts.

    Attributes:
        prepare: The same in every epoch: a PIL image to uint8 ``(C, H, W)``.
        finish: Random in training: that to float32 ``(C, H, W)``, augmented.
        how: A description of ``prepare``, which differs if its results do.
        shape: The shape of ``prepare``'s result; ``None`` for that of the image itself.
    """

    prepare: Callable[[Any], Tensor]
    finish: Callable[[Tensor], Tensor]
    how: str
    shape: Shape | None

    def __call__(self, image: Any) -> Tensor:
        """Apply both parts."""
        return self.finish(self.prepare(image))


class ImageFiles(Dataset[tuple[Tensor, Any]]):
    """Image files, read and transformed on access.

    Args:
        paths: Image files.
        labels: The label of each: a class, a number, or several numbers (a float tensor).
        decoding: How they are read.
        transform: The transform of each. For an index that is a :class:`Draw`, it is seeded by
            (seed, epoch, position).
        seed: Seed of the transform.
        decoded: The kept pixels that the transform has prepared; ``None`` keeps none.
    """

    def __init__(
        self,
        paths: Sequence[str],
        labels: Sequence[Label],
        *,
        decoding: Decoding,
        transform: ImageTransform,
        seed: int = 0,
        decoded: DecodedImages | None = None,
    ) -> None:
        self.paths = paths
        self.labels = labels
        self.decoding = decoding
        self.transform = transform
        self.seed = seed
        self.decoded = decoded

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int | Draw) -> tuple[Tensor, Any]:
        if not isinstance(index, Draw):
            return self._image(index), self._label(index)
        with seeded("augment", self.seed, index.epoch, index.position):
            return self._image(index.image), self._label(index.image)

    def _image(self, index: int) -> Tensor:
        if self.decoded is None:
            return self.transform(self._read(index))
        pixels = self.decoded.get(index)
        if pixels is None:
            pixels = self.transform.prepare(self._read(index))
            self.decoded.put(index, pixels)
        return self.transform.finish(pixels)

    def _label(self, index: int) -> Any:
        label = self.labels[index]
        return label if isinstance(label, int) else torch.tensor(label, dtype=torch.float32)

    def _read(self, index: int) -> Any:
        return decode(self.paths[index], self.decoding)


def evaluation_transform(config: DataConfig) -> ImageTransform:
    """Build the transform of evaluation: :meth:`DataConfig.eval_transform` in two parts.

    Args:
        config: The images that the backbone expects.
    """
    from torchvision.transforms import v2

    whole: Any = config.eval_transform()
    *fitted, _, normalise = whole.transforms
    finish = v2.Compose([_scaled, normalise])
    return ImageTransform(v2.Compose([*fitted, v2.PILToTensor()]), finish, *_fitted(config))


def training_transform(
    config: DataConfig, augment: Augment | Callable[[Tensor], Tensor]
) -> ImageTransform:
    """Build the transform of training, a PIL image to an augmented tensor ``(C, H, W)``.

    Args:
        config: The images that the backbone expects.
        augment: The augmentation of an image in [0, 1] of the backbone's size.
    """
    from torchvision.transforms import v2

    change = augment.transform(config.image_size) if isinstance(augment, Augment) else augment
    scaled = v2.ToDtype(torch.float32, scale=True)
    normalise = v2.Normalize(list(config.mean), list(config.std))
    finish = v2.Compose([scaled, change, normalise])
    if isinstance(augment, Augment) and augment.crop < 1:
        # the random crop replaces evaluation's resize and centre crop
        return ImageTransform(v2.PILToTensor(), finish, "as it is", None)
    return ImageTransform(evaluation_transform(config).prepare, finish, *_fitted(config))


def _fitted(config: DataConfig) -> tuple[str, Shape]:
    """Return how evaluation fits an image to the backbone, and the resulting shape."""
    facts = (config.input_size, config.interpolation, config.crop_pct, config.crop_mode)
    return f"fitted {facts}", config.input_size


def _scaled(pixels: Tensor) -> Tensor:
    return pixels.to(torch.float32).div(255)  # bit-equal to ToTensor
