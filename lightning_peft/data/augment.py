"""Augmentation: random changes of a training image that keep its class."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor

from lightning_peft.errors import DataError, near

__all__ = ["PRESETS", "Augment", "augmentation"]


@dataclasses.dataclass(frozen=True)
class Augment:
    """The strength of each random change of an image; the default changes nothing.

    All changes apply to images in [0, 1], before normalisation.

    Attributes:
        rotation: Largest rotation either way, in degrees.
        translate: Largest shift along each axis, as a fraction of the image's side.
        scale: Smallest and largest zoom factor.
        shear: Largest horizontal shear either way, in degrees: the slant of handwriting.
        crop: Smallest area of the random crop, as a fraction of the image; 1 does not crop. The
            crop's sides are in a ratio between 3:4 and 4:3 and it is resized to the full size.
        flip: Mirror half of the images left to right. None leaves it to the data module, which
            does not mirror if that changes the class (digits).
        brightness: Largest relative change of brightness: factors in ``[1 - b, 1 + b]``.
        contrast: The same for contrast.
        saturation: The same for saturation; no effect on images of one channel.
        hue: Largest turn of the colours either way, as a fraction of the colour circle, up to 0.5;
            no effect on images of one channel.
        randaugment: Operations of RandAugment on each image (Cubuk et al., 2020,
            https://arxiv.org/abs/1909.13719), drawn from torchvision's: turns, shears, shifts and
            changes of colour; 0 is off. It never mirrors.
        magnitude: The strength of each of them, from 0 to 30.
        noise: Standard deviation of Gaussian noise, in units of images in [0, 1].
        erase: Probability that a random rectangle (2 to 20 % of the area) is set to 0.

    Raises:
        DataError: If a value is out of its range; the error lists all such values.

    >>> import lightning_peft as lp
    >>> lp.Augment(rotation=10, crop=0.7, flip=False).crop
    0.7
    """

    rotation: float = 0.0
    translate: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    shear: float = 0.0
    crop: float = 1.0
    flip: bool | None = None
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    randaugment: int = 0
    magnitude: int = 9
    noise: float = 0.0
    erase: float = 0.0

    def __post_init__(self) -> None:
        # YAML gives a list; a tuple keeps the dataclass hashable
        object.__setattr__(self, "scale", tuple(self.scale))
        ranges = {"rotation": 180.0, "translate": 1.0, "brightness": 1.0, "contrast": 1.0}
        ranges |= {"saturation": 1.0, "noise": 1.0, "erase": 1.0, "shear": 80.0, "hue": 0.5}
        wrong = [
            f"{name} in [0, {high:g}], got {getattr(self, name)!r}"
            for name, high in ranges.items()
            if not 0 <= getattr(self, name) <= high
        ]
        for name, high in {"randaugment": 14, "magnitude": 30}.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= high:
                wrong.append(f"{name} as a whole number from 0 to {high}, got {value!r}")
        if not 0 < self.crop <= 1:
            wrong.append(f"crop in (0, 1], the area that stays, got {self.crop!r}")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            wrong.append(f"scale as two growing positive factors, got {self.scale!r}")
        if wrong:
            raise DataError("Expected " + "; ".join(wrong) + ".")

    def transform(self, image_size: int | tuple[int, int]) -> Callable[[Any], Tensor]:
        """Build the transform of one image from the parts of ``torchvision.transforms.v2``.

        Args:
            image_size: Side, or height and width, to which a random crop is resized.

        Returns:
            A transform of a float tensor ``(C, H, W)`` in [0, 1] to one of ``(C, *image_size)``.
            It draws from torch's global generator.
        """
        import torch
        from torchvision.transforms import v2

        bilinear = v2.InterpolationMode.BILINEAR
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        steps: list[Any] = [v2.ToDtype(torch.float32, scale=True)]
        if self.crop < 1:
            steps.append(v2.RandomResizedCrop(size, scale=(self.crop, 1.0), antialias=True))
        else:
            steps.append(v2.Resize(size, antialias=True))
        if self.flip:
            steps.append(v2.RandomHorizontalFlip())
        if self.rotation or self.translate or self.shear or self.scale != (1.0, 1.0):
            shift = (self.translate, self.translate)
            steps.append(
                v2.RandomAffine(
                    self.rotation, shift, self.scale, self.shear or None, interpolation=bilinear
                )
            )
        if self.randaugment:
            steps.append(self.random_operations())
        if self.brightness or self.contrast or self.saturation or self.hue:
            jitter = (self.brightness, self.contrast, self.saturation, self.hue)
            steps.append(v2.ColorJitter(*jitter))
        if self.noise:
            steps.append(v2.GaussianNoise(sigma=self.noise))
        if self.erase:
            steps.append(v2.RandomErasing(self.erase, scale=(0.02, 0.2)))
        composed: Callable[[Any], Tensor] = v2.Compose(steps)
        return composed

    def random_operations(self) -> Callable[[Tensor], Tensor]:
        """Build RandAugment alone, a transform of one float image ``(C, H, W)`` in [0, 1]."""
        from torchvision.transforms import v2

        operations: Callable[[Tensor], Tensor] = v2.RandAugment(
            self.randaugment,
            self.magnitude,
            num_magnitude_bins=31,
            interpolation=v2.InterpolationMode.BILINEAR,
        )
        return operations


PRESETS: dict[str, Augment] = {
    "none": Augment(flip=False),
    "light": Augment(
        rotation=10.0,
        translate=0.05,
        scale=(0.9, 1.1),
        crop=0.8,
        brightness=0.1,
        contrast=0.1,
        saturation=0.1,
        noise=0.02,
    ),
    "strong": Augment(
        rotation=20.0,
        translate=0.1,
        scale=(0.8, 1.2),
        crop=0.6,
        brightness=0.3,
        contrast=0.3,
        saturation=0.3,
        noise=0.05,
        erase=0.25,
    ),
    "colour": Augment(crop=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
    "randaugment": Augment(crop=0.8, randaugment=2, magnitude=9),
}
"""The presets by name."""


def augmentation(
    augment: str | Augment | None, *, flip: bool | None = None, **changes: Any
) -> Augment:
    """Look up a preset and replace some of its fields.

    Args:
        augment: A name of :data:`PRESETS`, an :class:`Augment`, or None for no augmentation.
        flip: The value of ``flip`` if the augmentation leaves it open.
        **changes: Fields of :class:`Augment` to replace.

    Returns:
        The augmentation.

    Raises:
        DataError: If there is no such preset or no such field.

    >>> augmentation("light", rotation=5.0).rotation
    5.0
    >>> augmentation("light", flip=True).flip
    True
    """
    if isinstance(augment, str):
        if augment not in PRESETS:
            raise DataError(f"There is no augmentation '{augment}'. {near(augment, PRESETS)}")
        augment = PRESETS[augment]
    elif augment is None:
        augment = PRESETS["none"]
    elif not isinstance(augment, Augment):
        raise DataError(
            "Expected an augmentation as a preset's name, an Augment or None, got "
            f"{type(augment).__name__}. {near('', PRESETS)}"
        )
    fields = {field.name for field in dataclasses.fields(Augment)}
    if unknown := sorted(set(changes) - fields):
        hints = " ".join(f"'{name}': {near(name, fields)}" for name in unknown)
        raise DataError(f"Augment has no such fields. {hints}")
    if augment.flip is None:
        changes.setdefault("flip", flip)
    return dataclasses.replace(augment, **changes)
