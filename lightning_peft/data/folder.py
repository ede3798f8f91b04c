"""Images in one folder for each class."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_peft._namespace import pl
from lightning_peft._seeds import seeded
from lightning_peft.data.augment import Augment, augmentation
from lightning_peft.data.flips import flip_confusions, thumbnails, warning_text
from lightning_peft.data.sampling import Draw, loader_options, train_loader
from lightning_peft.data.scan import Folder, Verify, find_problems, read_folder, refuse, unreadable
from lightning_peft.data.splits import few_labels, ranked_by_class
from lightning_peft.data_config import DataConfig, data_config
from lightning_peft.errors import DataError, near

__all__ = ["ImageFiles", "ImageFolderDataModule"]


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Image files, transformed when they are asked for.

    Args:
        paths: Image files.
        labels: Class of each.
        mode: PIL mode in which they are read, ``"L"`` or ``"RGB"``.
        transform: PIL image to tensor. Drawn from with a seed of (seed, epoch, position) where an
            image is asked for as a :class:`Draw`.
        seed: Seed of the transform.
    """

    def __init__(
        self,
        paths: Sequence[str],
        labels: Sequence[int],
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

    def __getitem__(self, index: int | Draw) -> tuple[Tensor, int]:
        if not isinstance(index, Draw):
            return self.transform(self._read(index)), self.labels[index]
        with seeded("augment", self.seed, index.epoch, index.position):
            return self.transform(self._read(index.image)), self.labels[index.image]

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


class ImageFolderDataModule(pl.LightningDataModule):
    """A folder of class folders, prepared as the backbone's own ``timm.data`` configuration says.

    Two layouts are read. ``root/train/<class>/``, with ``root/val`` and ``root/test`` if they
    exist; or ``root/<class>/``, of which a test set is split off that depends on ``test_fraction``
    alone.
    Where there is no ``val``, a stratified part of the training images validates. Images are ranked
    by a hash of their path, so a new file moves no other from one split into another's place.

    A batch is a pair of images ``(B, C, H, W)``, float32 and normalised, and labels ``(B,)``.
    The order and the augmentation are functions of (seed, epoch, position): a run that was stopped
    and resumed sees the very same batches, with any number of workers.

    Args:
        root: The folder.
        backbone: For which backbone the images are prepared: a timm name, a model, a mapping or a
            :class:`DataConfig`; None is timm's default (224 pixels, ImageNet statistics).
        labels_per_class: Training images of each class; None takes all.
        val_fraction: Part of each class's training images that validates, if there is no ``val``.
        val_per_class: Images of each class that validate, instead of a fraction.
        test_fraction: Part of each class that is the test set, if there is no ``train``.
        seed: Seed of the sample, of the order and of the augmentation.
        image_size: Height and width in pixels, instead of the backbone's.
        batch_size: Images a training batch, on each rank.
        eval_batch_size: Images a batch in validation and test; None is twice ``batch_size``.
        steps_per_epoch: Batches an epoch; None is one pass over the training images.
        augment: A preset's name, an :class:`Augment`, or a callable that takes and returns one
            image ``(C, H, W)`` in [0, 1] of the backbone's size and draws from torch's generator.
        flip: Mirror half of the training images, where the augmentation leaves it open (``"none"``
            does not). Switch it off where a mirrored image is of another class.
        flip_safe: Whether a mirrored image keeps its class. None looks at the images where they
            are mirrored, and warns if it seems not; True does not look, False forbids mirroring.
        verify: How image files are checked before training; see :func:`unreadable`.
        num_workers: Processes that load; None is the number of CPU cores, at most 8.
        pin_memory: Page-locked batches; where None, if there is a CUDA device.

    Raises:
        DataError: At :meth:`prepare_data`, listing all: fewer than two classes, empty classes,
            classes that differ between the splits, unreadable images. At :meth:`setup`, if there
            are fewer images than labels are asked for.
    """

    def __init__(
        self,
        root: str | Path,
        backbone: str | nn.Module | Mapping[str, Any] | DataConfig | None = None,
        *,
        labels_per_class: int | None = None,
        val_fraction: float = 0.1,
        val_per_class: int | None = None,
        test_fraction: float = 0.2,
        seed: int = 0,
        image_size: int | None = None,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        steps_per_epoch: int | None = None,
        augment: str | Augment | Callable[[Tensor], Tensor] | None = "light",
        flip: bool = True,
        flip_safe: bool | None = None,
        verify: Verify = "header",
        num_workers: int | None = None,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__()
        fractions = {"val_fraction": val_fraction, "test_fraction": test_fraction}
        wrong = [
            f"{name} in [0, 1), got {value}"
            for name, value in fractions.items()
            if not 0 <= value < 1
        ]
        if val_per_class is not None and val_per_class < 0:
            wrong.append(f"val_per_class of 0 or more, got {val_per_class}")
        if verify not in (levels := ("header", "decode", "none")):
            wrong.append(f"verify as one of {levels}, got '{verify}': {near(verify, levels)}")
        if wrong:
            raise DataError("Expected " + "; ".join(wrong) + ".")
        self.root = Path(root)
        self.config = data_config(backbone, image_size=image_size)
        flip = flip and flip_safe is not False
        self.augment = augment if callable(augment) else augmentation(augment, flip=flip)
        self.flip_safe = flip_safe
        if flip_safe is False and isinstance(self.augment, Augment) and self.augment.flip:
            raise DataError(
                "Expected an augmentation without flip for data with flip_safe=False, got "
                "flip=True: a mirrored image is of another class. Leave flip out."
            )
        self.labels_per_class = labels_per_class
        self.val_fraction = val_fraction
        self.val_per_class = val_per_class
        self.test_fraction = test_fraction
        self.seed = seed
        self.batch_size = batch_size
        self.eval_batch_size = 2 * batch_size if eval_batch_size is None else eval_batch_size
        self.steps_per_epoch = steps_per_epoch
        self.verify: Verify = verify
        self.num_workers = min(8, os.cpu_count() or 1) if num_workers is None else num_workers
        self.pin_memory = pin_memory
        self.files: dict[str, tuple[list[str], list[int]]] = {}
        """Paths and labels of each split, after :meth:`setup`."""
        self._class_names: tuple[str, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the class folders, sorted; the place is the label."""
        self.setup()
        return self._class_names

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def prepare_data(self) -> None:
        """Check the folders and every image file; Lightning calls this once on each machine."""
        folders = self._read()
        paths = [path for folder in folders.values() for path in folder.paths]
        refuse(find_problems(list(folders.values())) + unreadable(paths, self.verify))
        if self.flip_safe is None and isinstance(self.augment, Augment) and self.augment.flip:
            train = folders["train"]
            if found := flip_confusions(*thumbnails(train.paths, train.labels)):
                warnings.warn(warning_text(found, train.class_names), stacklevel=2)

    def setup(self, stage: str | None = None) -> None:
        """Read the folders and choose the samples; the second call does nothing."""
        if self.files:
            return
        folders = self._read()
        refuse(find_problems(list(folders.values())))
        train = folders["train"]
        bare = train.root == self.root
        labels, keys = train.labels, train.keys
        fixed = ranked_by_class(labels, keys, "lightning-peft folder test")
        cut = {c: _part(self.test_fraction if bare else 0, found) for c, found in fixed.items()}
        test = sorted(index for c, found in fixed.items() for index in found[: cut[c]])
        pool = [index for c, found in fixed.items() for index in found[cut[c] :]]
        ranked = ranked_by_class([labels[i] for i in pool], [keys[i] for i in pool], str(self.seed))
        chosen, val = few_labels(
            {c: [pool[i] for i in ranked.get(c, ())] for c in fixed},
            validation={
                c: 0 if "val" in folders else self._validating(ranked.get(c, ())) for c in fixed
            },
            labels_per_class=self.labels_per_class,
            class_names=train.class_names,
        )
        splits = {"train": chosen, "val": val, "test": test}
        files = {
            name: ([train.paths[i] for i in part], [labels[i] for i in part])
            for name, part in splits.items()
        }
        for name in folders.keys() - {"train"}:
            files[name] = (list(folders[name].paths), list(folders[name].labels))
        self.files, self._class_names = files, train.class_names

    def _validating(self, found: Sequence[int]) -> int:
        """How many of a class's images validate."""
        if self.val_per_class is None:
            return _part(self.val_fraction, found)
        return self.val_per_class

    def _read(self) -> dict[str, Folder]:
        if not self.root.is_dir():
            raise DataError(
                f"Expected a folder of class folders at {self.root}, got none: make it."
            )
        names = [name for name in ("train", "val", "test") if (self.root / name).is_dir()]
        # a class may be called "train"; such a folder has no folders in it, and no "val" beside it
        if "train" not in names or (names == ["train"] and not _has_folders(self.root / "train")):
            return {"train": read_folder(self.root)}
        return {name: read_folder(self.root / name) for name in names}

    def images(self, split: str) -> ImageFiles:
        """The dataset of a split; that of ``"train"`` is augmented."""
        train = split == "train"
        return self._images(
            split, self._train_transform() if train else self.config.eval_transform()
        )

    def _images(self, split: str, transform: Callable[[Any], Tensor]) -> ImageFiles:
        self.setup()
        paths, labels = self.files[split]
        return ImageFiles(
            paths, labels, mode=self.config.pil_mode, transform=transform, seed=self.seed
        )

    def eval_transform(self) -> Callable[[Any], Tensor]:
        """A PIL image in ``config.pil_mode`` to a tensor ``(C, H, W)``, as evaluated."""
        return self.config.eval_transform()

    def _train_transform(self) -> Callable[[Any], Tensor]:
        from torchvision.transforms import v2

        size = self.config.image_size
        if isinstance(self.augment, Augment) and self.augment.crop < 1:
            # the random crop takes the place of evaluation's resize and centre crop
            before: list[Any] = [v2.PILToTensor()]
        else:
            whole: Any = self.config.eval_transform()
            before = [*whole.transforms[:-2], v2.PILToTensor()]
        change = self.augment.transform(size) if isinstance(self.augment, Augment) else self.augment
        scaled = v2.ToDtype(torch.float32, scale=True)
        normalise = v2.Normalize(list(self.config.mean), list(self.config.std))
        composed: Callable[[Any], Tensor] = v2.Compose([*before, scaled, change, normalise])
        return composed

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of the training images, in an order that the epoch decides."""
        return train_loader(
            self.images("train"),
            trainer=self.trainer,
            seed=self.seed,
            batch_size=self.batch_size,
            steps_per_epoch=self.steps_per_epoch,
            **self._options(),
        )

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Batches of the validation images; none if there is no such split."""
        self.setup()
        return self._eval_loader("val") if self.files["val"][0] else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Batches of the test images."""
        self.setup()
        if not self.files["test"][0]:
            raise DataError(
                f"Expected test images, got none in {self.root}: add a folder `test`, or in a "
                "folder without `train` ask for test_fraction above 0."
            )
        return self._eval_loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Batches of the test images."""
        return self.test_dataloader()

    def plain_dataloader(self, split: str = "train") -> DataLoader[Any]:
        """Batches of a split as evaluation sees them: in a fixed order, nothing augmented."""
        return self._eval_loader(split)

    def _eval_loader(self, split: str) -> DataLoader[Any]:
        images = self._images(split, self.config.eval_transform())
        return DataLoader(images, batch_size=self.eval_batch_size, **self._options())

    def _options(self) -> dict[str, Any]:
        return loader_options(self.num_workers, self.pin_memory)


def _part(fraction: float, found: Sequence[int]) -> int:
    """How many images a fraction of a class is: at least one, so that no split lacks a class."""
    return max(1, round(fraction * len(found))) if fraction else 0


def _has_folders(folder: Path) -> bool:
    return any(entry.is_dir() and not entry.name.startswith(".") for entry in folder.iterdir())
