"""scikit-learn's handwritten digits: 1797 images of 8x8 pixels that come with the library."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_peft.backbones.data_config import DataConfig, data_config
from lightning_peft.data.augment import Augment, augmentation
from lightning_peft.data.splits import few_labels, ranked_by_class
from lightning_peft.data.tensors import TensorImages, as_is
from lightning_peft.errors import DataError, require
from lightning_peft.lightning.datamodules.loaders import SplitLoaders

__all__ = ["DigitsDataModule"]

POOL_PER_CLASS = 100  # for training and validation; the other 797 images are for the test


class DigitsDataModule(SplitLoaders):
    """Handwritten digits with a chosen number of labels and a fixed test set.

    100 images of each class are the pool for training and validation. The other 797 are the test
    set, independent of the arguments. Within the pool, ``seed`` decides which images are for
    validation and which for training. For one seed, validation is the same at every
    ``labels_per_class``, and a larger training sample contains the smaller ones. Validation images
    have labels too: count them, or set ``val_per_class=0``.

    A batch is a pair of images ``(B, C, H, W)``, float32 and normalised, and labels ``(B,)``.
    The order and the augmentation are functions of (seed, epoch, position): a run that was stopped
    and resumed, at the end of an epoch or within one, sees the same batches.

    Args:
        labels_per_class: Training images of each class; None takes all that are left of the pool.
        val_per_class: Validation images of each class.
        seed: Seed of the sample, of the order and of the augmentation.
        backbone: The backbone for which images are prepared (size, channels, normalisation): a timm
            name, a model, a mapping or a :class:`DataConfig`.
        image_size: Height and width in pixels, instead of the backbone's.
        channels: 1 or 3, instead of the backbone's.
        mean: Mean that normalises, instead of the backbone's; images are in [0, 1] before.
        std: Standard deviation that normalises, instead of the backbone's.
        batch_size: Images a training batch, on each rank.
        eval_batch_size: Images a batch in validation and test.
        steps_per_epoch: Batches an epoch; None is one pass. More batches than a pass repeat the
            images, which saves the overhead of many short epochs.
        augment: A preset's name, an :class:`Augment`, or a callable that takes and returns one
            image ``(C, H, W)`` in [0, 1] and draws from torch's generator.
        num_workers: Processes that load. The images are in memory, so the default is best.
        pin_memory: Whether to page-lock batches; None does if there is a CUDA device.

    Raises:
        DataError: If the augmentation mirrors, which changes digits into other characters; or at
            :meth:`setup`, if a class has too few images.
        MissingExtraError: At :meth:`setup`, if scikit-learn is not installed.

    >>> import lightning_peft as lp
    >>> data = lp.DigitsDataModule(labels_per_class=5, val_per_class=0)
    >>> data.setup("fit")
    >>> len(data.train_dataloader().dataset)
    50
    """

    num_classes = 10
    class_names = tuple("0123456789")

    def __init__(
        self,
        labels_per_class: int | None = None,
        val_per_class: int = 10,
        *,
        seed: int = 0,
        backbone: str | nn.Module | Mapping[str, Any] | DataConfig | None = "glyph_vit",
        image_size: int | None = None,
        channels: int | None = None,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 256,
        steps_per_epoch: int | None = None,
        augment: str | Augment | Callable[[Tensor], Tensor] | None = None,
        num_workers: int = 0,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__()
        self.augment = augment if callable(augment) else augmentation(augment, flip=False)
        if isinstance(self.augment, Augment) and self.augment.flip:
            raise DataError(
                "Expected an augmentation without flip for digits, got flip=True: a mirrored digit "
                "is another one or none. Leave flip out."
            )
        if val_per_class < 0:
            raise DataError(f"Expected val_per_class of 0 or more, got {val_per_class}.")
        self.config = data_config(
            backbone, image_size=image_size, channels=channels, mean=mean, std=std
        )
        self.labels_per_class = labels_per_class
        self.val_per_class = val_per_class
        self.seed = seed
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.steps_per_epoch = steps_per_epoch
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.indices: dict[str, list[int]] = {}
        """The indices of each split among the 1797 images, after :meth:`setup`."""

    def setup(self, stage: str | None = None) -> None:
        """Choose the samples and prepare the images; a second call has no effect."""
        if self.indices:
            return
        bunch = require("sklearn.datasets", "data").load_digits()
        labels = [int(label) for label in bunch.target]
        keys = [str(index) for index in range(len(labels))]
        fixed = ranked_by_class(labels, keys, "lightning-peft digits test")
        pool = [index for found in fixed.values() for index in found[:POOL_PER_CLASS]]
        ranked = ranked_by_class([labels[i] for i in pool], [keys[i] for i in pool], str(self.seed))
        train, val = few_labels(
            {label: [pool[i] for i in found] for label, found in ranked.items()},
            validation=dict.fromkeys(fixed, self.val_per_class),
            labels_per_class=self.labels_per_class,
            class_names=self.class_names,
        )
        test = sorted(index for found in fixed.values() for index in found[POOL_PER_CLASS:])
        self._raw = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
        self._labels = torch.tensor(labels)
        self.indices = {"train": train, "val": val, "test": test}

    def pixels(self, split: str) -> tuple[Tensor, Tensor]:
        """Return the unprepared images of a split, for baselines.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.

        Returns:
            Pixels in [0, 1] of shape ``(N, 64)``, and labels ``(N,)``.
        """
        self.setup()
        chosen = self.indices[split]
        return self._raw[chosen].flatten(1), self._labels[chosen]

    def images(self, split: str) -> TensorImages:
        """Return the dataset of a split; ``"train"`` augments images requested as a draw."""
        self.setup()
        chosen = self.indices[split]
        large = F.interpolate(
            self._raw[chosen], size=self.config.image_size, mode=self.config.interpolation
        )
        return TensorImages(
            large.clamp(0, 1).repeat(1, self.config.channels, 1, 1),
            self._labels[chosen],
            mean=self.config.mean,
            std=self.config.std,
            augment=self.augment,
            seed=self.seed,
        )

    def eval_transform(self) -> Callable[[Any], Tensor]:
        """Build the evaluation transform: a PIL image of a digit, of any size, to ``(C, H, W)``."""
        return DigitTransform(self.config)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return batches of the validation sample; none if ``val_per_class`` is 0."""
        self.setup()
        return self.plain_dataloader("val") if self.indices["val"] else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Return batches of the test set."""
        return self.plain_dataloader("test")

    def _samples(self, split: str, *, training: bool) -> TensorImages:
        return self.images(split)

    def _options(self) -> dict[str, Any]:
        return super()._options() | {"collate_fn": as_is}


class DigitTransform:
    """The preparation of a digit in :class:`DigitsDataModule`: one interpolation, in float."""

    def __init__(self, config: DataConfig) -> None:
        self.config = config

    def __call__(self, image: Any) -> Tensor:
        """Convert a PIL image to a tensor ``(C, H, W)``."""
        from torchvision.transforms.v2 import functional as transforms

        config = self.config
        pixels = transforms.to_dtype(transforms.pil_to_tensor(image), torch.float32, scale=True)
        large = F.interpolate(pixels[None], size=config.image_size, mode=config.interpolation)[0]
        large = large.clamp(0, 1).expand(config.channels, -1, -1)
        return transforms.normalize(large, list(config.mean), list(config.std))
