"""Images in one folder for each class, or below one folder with a labels file."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_peft.backbones.data_config import DataConfig, data_config
from lightning_peft.data.augment import Augment, augmentation
from lightning_peft.data.decode import Decoding
from lightning_peft.data.flips import flip_confusions, thumbnails, warning_text
from lightning_peft.data.image_cache import ImageCache
from lightning_peft.data.image_files import (
    ImageFiles,
    ImageTransform,
    evaluation_transform,
    training_transform,
)
from lightning_peft.data.labelled import counted, mean_and_deviation
from lightning_peft.data.labelled_images import Files, LabelledImages, of_a_file, of_folders
from lightning_peft.data.scan import refuse
from lightning_peft.data.verify import Verify
from lightning_peft.errors import DataError
from lightning_peft.evaluation.metric_names import Task
from lightning_peft.lightning.datamodules.folder_checks import check_arguments
from lightning_peft.lightning.datamodules.loaders import SplitLoaders, workers

__all__ = ["ImageFiles", "ImageFolderDataModule"]


log = logging.getLogger(__name__)


class ImageFolderDataModule(SplitLoaders):
    """A folder of images, prepared by the backbone's own ``timm.data`` configuration.

    Two layouts of class folders are read. ``root/train/<class>/``, with ``root/val`` and
    ``root/test`` if they exist (also ``Train``, ``valid``, ``validation``, ``dev``, ``testing``, in
    any case); or ``root/<class>/``, from which a test set is split off that only depends on
    ``test_fraction``. Every format is read that Pillow decodes here, as a person sees it: see
    :class:`~lightning_peft.data.decode.Decoding`. A warning counts the files that are not read.
    Without ``val``, a stratified part of the training images is used for validation. Images are
    ranked by a hash of their path, so a new file does not move others between splits.

    With ``labels``, the images are anywhere below the folder and a CSV file holds their labels (see
    :func:`~lightning_peft.data.labels_file.read_labels`): a class, several labels, or numbers. Its
    column ``split``, if it has one, stands for the folders ``train``, ``val`` and ``test``.

    A batch is a pair of images ``(B, C, H, W)``, float32 and normalised, and labels: ``(B,)``
    classes or numbers in float32, or ``(B, K)`` in float32 for several.
    The order and the augmentation are functions of (seed, epoch, position): a run that was stopped
    and resumed sees the same batches, with any number of workers.

    Args:
        root: The folder.
        backbone: The backbone for which images are prepared: a timm name, a model, a mapping or a
            :class:`DataConfig`; None is timm's default (224 pixels, ImageNet statistics).
        labels: A CSV file of labels, a path or below ``root``; None reads class folders.
        label_columns: Its columns that hold labels; all except those of files and of splits by
            default.
        file_column: Its column of files.
        encoding: Its encoding; None is UTF-8, or UTF-16 if it says so.
        task: ``"multiclass"``, ``"binary"``, ``"multilabel"`` or ``"regression"``; None infers
            it from the labels. ``"binary"`` is for two classes and a head with one output.
        labels_per_class: Training images of each class; None takes all.
        val_fraction: Fraction of each class's training images for validation, without ``val``.
        val_per_class: Validation images of each class, instead of a fraction.
        test_fraction: Fraction of each class for the test, if there is no ``train``.
        seed: Seed of the sample, of the order and of the augmentation.
        image_size: Height and width in pixels, instead of the backbone's.
        batch_size: Images a training batch, on each rank.
        eval_batch_size: Images a batch in validation and test; None is twice ``batch_size``.
        steps_per_epoch: Batches an epoch; None is one pass over the training images.
        augment: A preset's name, an :class:`Augment`, or a callable that takes and returns one
            image ``(C, H, W)`` in [0, 1] of the backbone's size and draws from torch's generator.
        flip: Mirror half of the training images, if the augmentation leaves it open (``"none"``
            does not). Switch it off if mirroring changes the class.
        flip_safe: Whether a mirrored image keeps its class. None examines mirrored images and
            warns if it seems not; True skips this, False forbids mirroring.
        verify: How image files are checked before training; see
            :func:`~lightning_peft.data.verify.unreadable`. Unless it is ``"none"``, files with the
            same content are refused if their labels or splits differ, and of the others one is
            used for training.
        value_range: The values that are black and white in images with more levels than 256, such
            as ``(0, 4095)``; None takes what their format says.
        cache: Keep training and validation images decoded, as bytes: True in a temporary file, a
            directory in files that later runs, ranks and jobs share (also the test images). The
            results are the same. It pays off if loading is slower than a step.
        num_workers: Processes that load; None is the number of CPU cores, at most 8.
        pin_memory: Whether to page-lock batches; None does if there is a CUDA device.

    Raises:
        DataError: At :meth:`prepare_data`, listing all problems: fewer than two classes, empty
            classes, classes that differ between the splits, unreadable images. At :meth:`setup`,
            if a class has too few images.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> import lightning_peft as lp
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for name in ("cats", "dogs"):
    ...         (Path(root) / name).mkdir()
    ...         for red in range(10):
    ...             colour = (20 * red, 0, ord(name[0]))
    ...             Image.new("RGB", (8, 8), colour).save(f"{root}/{name}/{red}.png")
    ...     data = lp.ImageFolderDataModule(root, "test_vit", flip=False)
    ...     data.setup("fit")
    ...     data.class_names
    ...
    ('cats', 'dogs')
    """

    def __init__(
        self,
        root: str | Path,
        backbone: str | nn.Module | Mapping[str, Any] | DataConfig | None = None,
        *,
        labels: str | Path | None = None,
        label_columns: Sequence[str] | None = None,
        file_column: str | None = None,
        encoding: str | None = None,
        task: Task | None = None,
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
        value_range: Sequence[float] | None = None,
        cache: bool | str | Path = False,
        num_workers: int | None = None,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__()
        check_arguments(
            labels, task,
            fractions={"val_fraction": val_fraction, "test_fraction": test_fraction},
            val_per_class=val_per_class, verify=verify, value_range=value_range,
            of_table={"label_columns": label_columns, "file_column": file_column,
                      "encoding": encoding},
        )  # fmt: skip
        self.root = Path(root)
        self.config = data_config(backbone, image_size=image_size)
        self.decoding = Decoding(
            self.config.pil_mode,
            None if value_range is None else (float(value_range[0]), float(value_range[1])),
        )
        flip = flip and flip_safe is not False
        self.augment = augment if callable(augment) else augmentation(augment, flip=flip)
        self.flip_safe = flip_safe
        if flip_safe is False and isinstance(self.augment, Augment) and self.augment.flip:
            raise DataError(
                "Expected an augmentation without flip for data with flip_safe=False, got "
                "flip=True: mirroring changes the class. Leave flip out."
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
        self.cache = ImageCache(cache)
        self.num_workers = workers(num_workers)
        self.pin_memory = pin_memory
        self.labels = labels
        self.label_columns = None if label_columns is None else list(label_columns)
        self.file_column = file_column
        self.encoding = encoding
        self._task: Any = task
        self.files: Files = {}
        self._checked = False
        """Paths and labels of each split, after :meth:`setup`."""
        self._class_names: tuple[str, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers; or of the labels or numbers."""
        self.setup()
        return self._class_names

    @property
    def num_classes(self) -> int:
        """Number of classes, labels or numbers that the head predicts."""
        return len(self.class_names)

    @property
    def task(self) -> Task:
        """The task, given or inferred from the labels."""
        self.setup()
        assert self._task is not None
        return self._task

    def class_counts(self, split: str) -> list[int]:
        """Return the images of a split in each class or with each label; empty for numbers."""
        self.setup()
        return counted(self.files[split][1], self.num_classes, self.task)

    def target_statistics(self) -> tuple[list[float], list[float]]:
        """Return the mean and standard deviation of each number over the training images."""
        self.setup()
        return mean_and_deviation(self.files["train"][1])

    def prepare_data(self) -> None:
        """Check the labels and every image file; Lightning calls this once on each machine.

        What was checked is not checked again by the same object.
        """
        if self._checked:  # a trainer prepares the data for every fit, test and so on
            return
        found = self._read()
        refuse(found.find_problems(self.verify, self.decoding))
        for note in found.notes:
            log.warning(note)
        if found.table.task in ("multiclass", "binary"):
            self._look_at_flips(*found.training(), found.table.names)
        self._checked = True

    def _look_at_flips(
        self, paths: Sequence[str], labels: Sequence[Any], names: Sequence[str]
    ) -> None:
        mirrors = isinstance(self.augment, Augment) and self.augment.flip
        if not mirrors or self.flip_safe is not None:
            return
        small = thumbnails(paths, labels, self.decoding.value_range)
        if found := flip_confusions(*small):
            warnings.warn(warning_text(found, names), stacklevel=3)

    def setup(self, stage: str | None = None) -> None:
        """Read the folders or the labels and choose the samples; a second call has no effect."""
        if self.files:
            return
        found = self._read()
        refuse(found.problems)
        repeats = [] if self.verify == "none" else found.repeats()
        if repeats:
            log.warning(
                "%d of %d images are repeats and are dropped", len(repeats), len(found.paths)
            )
        self.files = found.divide(
            repeats,
            seed=self.seed,
            val_fraction=self.val_fraction,
            val_per_class=self.val_per_class,
            test_fraction=self.test_fraction,
            labels_per_class=self.labels_per_class,
        )
        self._class_names, self._task = found.table.names, found.table.task

    def _read(self) -> LabelledImages:
        if self.labels is None:
            return of_folders(self.root, self._task)
        return of_a_file(
            self.labels,
            self.root,
            task=self._task,
            columns=self.label_columns,
            file_column=self.file_column,
            encoding=self.encoding,
        )

    def images(self, split: str) -> ImageFiles:
        """Return the dataset of a split; ``"train"`` is augmented."""
        if split == "train":
            return self._images(split, training_transform(self.config, self.augment))
        return self._images(split, evaluation_transform(self.config))

    def _samples(self, split: str, *, training: bool) -> ImageFiles:
        if training:
            return self.images(split)
        return self._images(split, evaluation_transform(self.config))

    def _images(self, split: str, transform: ImageTransform) -> ImageFiles:
        self.setup()
        paths, labels = self.files[split]
        decoded = self.cache.of(split, paths, transform, self.decoding)
        options: Any = {"transform": transform, "seed": self.seed, "decoded": decoded}
        return ImageFiles(paths, labels, decoding=self.decoding, **options)

    def eval_transform(self) -> Callable[[Any], Tensor]:
        """Build the evaluation transform: a PIL image in ``config.pil_mode`` to ``(C, H, W)``."""
        return self.config.eval_transform()

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return batches of the validation images; none if there is no such split."""
        self.setup()
        return self.plain_dataloader("val") if self.files["val"][0] else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Return batches of the test images."""
        self.setup()
        if not self.files["test"][0]:
            raise DataError(
                f"Expected test images, got none in {self.root}: add a folder `test`, or in a "
                "folder without `train` set test_fraction above 0."
            )
        return self.plain_dataloader("test")
