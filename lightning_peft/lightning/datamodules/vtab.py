"""VTAB-1k: nineteen tasks of 1000 labelled images each, with the protocol of the papers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_peft.backbones.data_config import DataConfig, data_config
from lightning_peft.data.decode import Decoding
from lightning_peft.data.image_cache import ImageCache
from lightning_peft.data.image_files import ImageFiles, evaluation_transform
from lightning_peft.data.image_lists import ImageList, missing_images, read_list
from lightning_peft.data.vtab_tasks import TASKS, TaskName
from lightning_peft.errors import DataError, near
from lightning_peft.lightning.datamodules.loaders import SplitLoaders, workers

__all__ = ["Phase", "VTABDataModule"]

Phase = Literal["choose", "final"]

LISTS: dict[str, dict[str, str]] = {
    "choose": {"train": "train800.txt", "val": "val200.txt"},
    "final": {"train": "train800val200.txt", "test": "test.txt"},
}
"""The list of each split, by phase. No phase has both the validation and the test images."""

SOURCE = (
    "The lists and images are written by data/vtab-source/get_vtab1k.py of "
    "https://github.com/ZhangYuanhan-AI/NOAH; the README of "
    "https://github.com/luogen1996/RepAdapter links an archive of them."
)


class VTABDataModule(SplitLoaders):
    """One task of VTAB-1k, from images on disk in the layout of the literature.

    ``root/<task>/`` holds ``train800.txt``, ``val200.txt``, ``train800val200.txt`` and
    ``test.txt``, each with lines such as ``images/test/000000.jpg 3``.

    The protocol (Zhai et al., 2019, "A Large-scale Study of Representation Learning with the Visual
    Task Adaptation Benchmark"): make all choices with 800 training and 200 validation images
    (``phase="choose"``); then train once more on all 1000 and test the last weights
    (``phase="final"``). Neither phase has both the validation and the test images, so nothing can
    be chosen on the test set. The measure is top-1 accuracy; the literature reports its mean over
    the 19 tasks or the mean of the three groups' means, which are different numbers.

    Images are resized to the backbone's size, whatever their shape, and normalised, without
    augmentation, as in VPT, NOAH, SSF, Convpass, FacT and RepAdapter.

    A batch is a pair of images ``(B, C, H, W)``, float32 and normalised, and labels ``(B,)``. The
    order is a function of (seed, epoch): a run that was stopped and resumed sees the same batches.

    Args:
        root: The folder that holds the tasks.
        task: The task, which is the name of its folder.
        phase: ``"choose"`` trains on 800 images and validates on 200; ``"final"`` trains on 1000
            and tests.
        backbone: The backbone for which images are prepared: a timm name, a model, a mapping or a
            :class:`DataConfig`; None is timm's default (224 pixels).
        mean: Mean that normalises; None is the backbone's. Most papers use ImageNet's, although
            the ViT-B/16 that they adapt was pretrained with 0.5 and 0.5.
        std: Standard deviation that normalises; None is the backbone's.
        interpolation: The interpolation of resizing: ``"bicubic"`` or ``"bilinear"``.
        seed: Seed of the order.
        batch_size: Images a training batch, on each rank.
        eval_batch_size: Images a batch in validation and test.
        drop_last: Leave out the last incomplete batch of an epoch, as the papers do.
        cache: Keep decoded images: as for :class:`~lightning_peft.ImageFolderDataModule`.
        num_workers: Processes that load; None is the number of CPU cores, at most 8.
        pin_memory: Whether to page-lock batches; None does if there is a CUDA device.

    Raises:
        DataError: If there is no such task or phase; at :meth:`prepare_data`, listing all problems:
            missing lists, malformed lines, missing images, lists whose sizes do not match; for a
            split that the phase does not have.

    >>> import lightning_peft as lp
    >>> data = lp.VTABDataModule("vtab-1k", "cifar", phase="choose")
    """

    def __init__(
        self,
        root: str | Path,
        task: TaskName,
        *,
        phase: Phase = "final",
        backbone: str | nn.Module | Mapping[str, Any] | DataConfig | None = None,
        mean: float | Sequence[float] | None = (0.485, 0.456, 0.406),
        std: float | Sequence[float] | None = (0.229, 0.224, 0.225),
        interpolation: Literal["bicubic", "bilinear"] = "bicubic",
        seed: int = 0,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        drop_last: bool = True,
        cache: bool | str | Path = False,
        num_workers: int | None = None,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__()
        wrong = [
            f"{name} as one of {len(options)}, got '{value}': {near(str(value), options)}"
            for name, value, options in (("task", task, TASKS), ("phase", phase, LISTS))
            if value not in options
        ]
        if wrong:
            raise DataError("Expected " + "; ".join(wrong))
        found = data_config(backbone, mean=mean, std=std)
        # the whole image at the backbone's size, whatever the shape
        self.config = dataclasses.replace(
            found, interpolation=interpolation, crop_pct=1.0, crop_mode="squash"
        )
        self.root = Path(root)
        self.task = task
        self.phase = phase
        self.seed = seed
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.drop_last = drop_last
        self.cache = ImageCache(cache)
        self.num_workers = workers(num_workers)
        self.pin_memory = pin_memory
        self.lists: dict[str, ImageList] = {}
        """The images and labels of each split of the phase, after :meth:`setup`."""

    @property
    def num_classes(self) -> int:
        """Number of classes of the task."""
        return TASKS[self.task].num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """The labels as strings: the lists have no names."""
        return tuple(map(str, range(self.num_classes)))

    def prepare_data(self) -> None:
        """Check the lists and that every image exists."""
        lists = self._read()
        self._refuse([told for found in lists.values() for told in missing_images(found)])

    def setup(self, stage: str | None = None) -> None:
        """Read the lists of the phase; a second call has no effect."""
        if not self.lists:
            self.lists = self._read()

    def _read(self) -> dict[str, ImageList]:
        folder = self.root / self.task
        if not folder.is_dir():
            raise DataError(f"Expected the folder {folder} of the task, got none. {SOURCE}")
        read = {
            name: read_list(folder / file, folder, self.num_classes)
            for name, file in LISTS[self.phase].items()
        }
        problems = [told for _, found in read.values() for told in found]
        self._refuse(problems)
        lists = {name: found for name, (found, _) in read.items() if found is not None}
        self._refuse(self._strangers(folder, lists["train"]))
        return lists

    def _strangers(self, folder: Path, train: ImageList) -> list[str]:
        """Compare the final phase's list with those that its images come from, if these exist."""
        parts = [folder / name for name in LISTS["choose"].values()]
        if self.phase != "final" or not all(part.is_file() for part in parts):
            return []
        found = [read_list(part, folder, self.num_classes)[0] for part in parts]
        sizes = [0 if part is None else len(part) for part in found]
        if sum(sizes) == len(train):
            return []
        return [
            f"{train.path}: expected the {sizes[0]} + {sizes[1]} images of train800.txt and "
            f"val200.txt, got {len(train)}"
        ]

    def _refuse(self, problems: Sequence[str]) -> None:
        if problems:
            lines = "\n".join(f"  {problem}" for problem in problems)
            raise DataError(f"The task '{self.task}' of VTAB-1k is incomplete:\n{lines}\n{SOURCE}")

    def images(self, split: str) -> ImageFiles:
        """Return the dataset of a split; empty if the phase does not have it."""
        self.setup()
        found = self.lists.get(split)
        paths = () if found is None else found.images
        transform, decoding = evaluation_transform(self.config), Decoding(self.config.pil_mode)
        return ImageFiles(
            paths,
            () if found is None else found.labels,
            decoding=decoding,
            transform=transform,
            seed=self.seed,
            decoded=self.cache.of(split, paths, transform, decoding),
        )

    def eval_transform(self) -> Callable[[Any], Tensor]:
        """Build the transform of training and evaluation: a PIL image to ``(C, H, W)``."""
        return self.config.eval_transform()

    def _samples(self, split: str, *, training: bool) -> ImageFiles:
        return self.images(split)

    def _epoch_batches(self, samples: ImageFiles) -> int | None:
        if not self.drop_last:
            return None
        return max(1, len(samples) // self.batch_size) if self.batch_size > 0 else 1

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return batches of the 200 validation images; none in the final phase."""
        return self.plain_dataloader("val") if self.phase == "choose" else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Return batches of the test images.

        Raises:
            DataError: In the phase ``"choose"``.
        """
        if self.phase == "choose":
            raise DataError(
                "Expected phase='final' to test, got 'choose': the test set must choose nothing. "
                "Choose by the validation accuracy (test=false), then train once more on all 1000 "
                "images with phase='final' and test that."
            )
        return self.plain_dataloader("test")
