"""Images in one folder for each class, or below one folder with a labels file."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_peft.backbones.data_config import DataConfig, data_config
from lightning_peft.data.augment import Augment, augmentation
from lightning_peft.data.flips import flip_confusions, thumbnails, warning_text
from lightning_peft.data.image_cache import ImageCache
from lightning_peft.data.image_files import (
    ImageFiles,
    ImageTransform,
    evaluation_transform,
    training_transform,
)
from lightning_peft.data.labelled import counted, mean_and_deviation, splits_of
from lightning_peft.data.labels_file import LabelsFile, find_labels, read_labels
from lightning_peft.data.scan import Folder, Verify, find_problems, read_folders, refuse, unreadable
from lightning_peft.data.splits import divide
from lightning_peft.errors import DataError, near
from lightning_peft.evaluation.metric_names import Task
from lightning_peft.lightning.datamodules.loaders import SplitLoaders, workers

__all__ = ["ImageFiles", "ImageFolderDataModule"]


Files = dict[str, tuple[list[str], list[Any]]]


class ImageFolderDataModule(SplitLoaders):
    """A folder of images, prepared by the backbone's own ``timm.data`` configuration.

    Two layouts of class folders are read. ``root/train/<class>/``, with ``root/val`` and
    ``root/test`` if they exist; or ``root/<class>/``, from which a test set is split off that only
    depends on ``test_fraction``.
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
        label_columns: Its columns that hold labels; all except ``file`` and ``split`` by default.
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
        verify: How image files are checked before training; see :func:`unreadable`.
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
        cache: bool | str | Path = False,
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
        if labels is None and task not in (None, "multiclass", "binary"):
            wrong.append(f"a labels file for task='{task}', which folders do not have")
        if labels is not None and val_per_class is not None:
            wrong.append("no val_per_class with a labels file, which may assign val itself")
        if labels is None and label_columns is not None:
            wrong.append("a labels file for label_columns")
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
        self._task: Any = task
        self.files: Files = {}
        self._looked_at_flips = False
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
        """Check the labels and every image file; Lightning calls this once on each machine."""
        if self.labels is not None:
            table = self._table()
            paths = [str(self.root / name) for name in table.files]
            refuse(unreadable(paths, self.verify))
            if table.task in ("multiclass", "binary"):
                self._look_at_flips(paths, table.labels, table.names)
            return
        folders = read_folders(self.root)
        paths = [path for folder in folders.values() for path in folder.paths]
        refuse(find_problems(list(folders.values())) + unreadable(paths, self.verify))
        train = folders["train"]
        self._look_at_flips(train.paths, train.labels, train.class_names)

    def _look_at_flips(
        self, paths: Sequence[str], labels: Sequence[Any], names: Sequence[str]
    ) -> None:
        mirrors = isinstance(self.augment, Augment) and self.augment.flip
        if not mirrors or self.flip_safe is not None or self._looked_at_flips:
            return
        self._looked_at_flips = True  # a trainer prepares the data for every fit, test and so on
        if found := flip_confusions(*thumbnails(paths, labels)):
            warnings.warn(warning_text(found, names), stacklevel=3)

    def setup(self, stage: str | None = None) -> None:
        """Read the folders or the labels and choose the samples; a second call has no effect."""
        if self.files:
            return
        options: Any = {
            "seed": self.seed,
            "val_fraction": self.val_fraction,
            "test_fraction": self.test_fraction,
            "labels_per_class": self.labels_per_class,
        }
        if self.labels is not None:
            table = self._table()
            files, names, task = splits_of(table, self.root, **options), table.names, table.task
        else:
            folders = read_folders(self.root)
            refuse(find_problems(list(folders.values())))
            names, task = folders["train"].class_names, self._task or "multiclass"
            if task == "binary" and len(names) != 2:
                raise DataError(
                    f"Expected two class folders for task='binary', got {len(names)}: leave the "
                    "task out."
                )
            files = self._from_folders(folders, options)
        self.files, self._class_names, self._task = files, names, task

    def _from_folders(self, folders: Mapping[str, Folder], options: dict[str, Any]) -> Files:
        train = folders["train"]
        bare = train.root == self.root
        options["test_fraction"] *= bare
        options["val_fraction"] *= "val" not in folders
        options["val_per_class"] = 0 if "val" in folders else self.val_per_class
        parts = divide(train.labels, train.keys, class_names=train.class_names, **options)
        files: Files = {
            name: ([train.paths[i] for i in part], [train.labels[i] for i in part])
            for name, part in parts.items()
        }
        for name in folders.keys() - {"train"}:
            files[name] = (list(folders[name].paths), list(folders[name].labels))
        return files

    def _table(self) -> LabelsFile:
        assert self.labels is not None
        path = find_labels(self.labels, self.root)
        return read_labels(path, self.root, task=self._task, columns=self.label_columns)

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
        mode = self.config.pil_mode
        decoded = self.cache.of(split, paths, transform, mode)
        options: Any = {"transform": transform, "seed": self.seed, "decoded": decoded}
        return ImageFiles(paths, labels, mode=mode, **options)

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
