"""A callback that runs the frozen first part of a backbone once for each sample."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sized
from pathlib import Path
from typing import Any, ClassVar, TypeGuard

from torch.utils._pytree import tree_leaves

from lightning_peft.caching import PrefixCache, RepeatedViews
from lightning_peft.errors import MethodError
from lightning_peft.lightning.class_names import SHARDING, is_a
from lightning_peft.lightning.namespace import pl, pl_import
from lightning_peft.lightning.standing import standing_backbone

__all__ = ["FeatureCache"]

_PATIENCE = 8  # batches of an epoch after which the hit rate is judged
_RARE = 0.1


class FeatureCache(pl.Callback):
    """Compute the outputs of the backbone's frozen first part once, and read them back afterwards.

    >>> from lightning_peft import FeatureCache
    >>> callback = FeatureCache(max_bytes=8 * 2**30)

    It pays off if the first part is frozen and the same inputs come every epoch: a linear probe,
    the last blocks, a side network (``ladder``), the stages of ``BackboneFreeze``. The run ends
    with the same weights as without it: bit for bit if the arithmetic of a sample does not depend
    on its batch, else up to rounding, which is reported. Training and validation inside ``fit`` use
    it; with a ``directory``, where other runs may have left the features, ``validate`` and ``test``
    use it, too.

    The key of a sample is its content, so shuffling, resuming, several processes and augmentation
    cannot mix samples up. Random augmentation gives new content in each epoch, so no sample is
    found again: the callback reports it in the second epoch and turns itself off.
    :class:`~lightning_peft.RepeatedViews` around the data set makes augmentation repeat.

    If the first part cannot be cached (dropout or BatchNorm in training mode, a gradient that
    goes through it, gradient checkpointing, a compiled backbone, a forward that cannot be split),
    the whole backbone runs and one line says why. When a stage begins to train more, the features
    are computed again for the part that is still frozen. Under DDP each process keeps the samples
    that it has seen; in a shared ``directory`` they find each other's from the next epoch on.

    Args:
        backbone: Attribute path of the backbone in the module. ``None`` finds it; two are an
            error.
        max_bytes: The largest size of the features in each process, or of all files in the
            directory. If the data needs more, nothing is cached; the estimate is printed before the
            first batch is kept.
        directory: Keep the features in files there, mapped into memory: for data that does not fit,
            for later runs, and for several processes. Remove it when it is no longer needed.
        min_share: The smallest share of a forward's operations that is worth caching, in [0, 1].

    Attributes:
        cache: The cache of the current or last stage that used one.

    Raises:
        MethodError: If a setting is out of range.
    """

    _checked: ClassVar[dict[Any, Any] | None] = None
    """What was compared, for the jobs of one sweep, which compare only once."""

    def __init__(
        self,
        backbone: str | None = None,
        *,
        max_bytes: int = 4 * 2**30,
        directory: str | os.PathLike[str] | None = None,
        min_share: float = 0.1,
    ) -> None:
        number = isinstance(max_bytes, int) and not isinstance(max_bytes, bool)
        problems = []
        if not number or max_bytes < 1:
            problems.append(f"expected max_bytes to be a whole number from 1, got {max_bytes!r}")
        if not isinstance(min_share, int | float) or not 0 <= min_share <= 1:
            problems.append(f"expected min_share in [0, 1], got {min_share!r}")
        if directory is not None and Path(directory).is_file():
            problems.append(f"expected directory to be a directory, got the file {directory}")
        if problems:
            raise MethodError("FeatureCache: " + "; ".join(problems) + ".")
        self.backbone = backbone
        self.max_bytes = max_bytes
        self.directory = directory
        self.min_share = min_share
        self.cache: PrefixCache | None = None
        self._epochs = 0
        self._views = 1
        self._made: tuple[int, int] | None = None
        self._start = (0, 0)
        self._batches = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Replace the backbone's forward."""
        self._begin(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Judge the hits of training, before validation adds to them; or begin a validation."""
        if trainer.state.fn == "fit":
            self._judge()
        elif self.directory is not None:
            self._begin(trainer, pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Replace the backbone's forward, if other runs may know the features."""
        if self.directory is not None:
            self._begin(trainer, pl_module)

    def _begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        path, backbone = standing_backbone(pl_module, self.backbone)
        self.cache = PrefixCache(
            backbone,
            max_bytes=self.max_bytes,
            directory=self.directory,
            min_share=self.min_share,
            samples=lambda: self._samples(trainer),
            say=_say,
            checked=self._checked,
        )
        self._epochs, self._made = 0, None
        self.cache.install()
        if self.cache.off is None and is_a(trainer.strategy, *SHARDING):
            self.cache.give_up(f"{type(trainer.strategy).__name__} keeps parts of a module apart")
        elif self.cache.off is None and "_orig_mod" in path.split("."):
            self.cache.give_up("the backbone is compiled")

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Skip the sanity check: the amount of data is not known yet."""
        if self.cache is not None:
            self.cache.paused = True

    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin."""
        if self.cache is not None:
            self.cache.paused = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find augmentation that repeats itself."""
        self._views = max((d.views for d in _datasets(trainer) if _repeats(d)), default=1)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the view of the epoch, and load the features that other processes have written."""
        for dataset in _datasets(trainer):
            if _repeats(dataset):
                dataset.set_epoch(trainer.current_epoch)
        if self.cache is None:
            return
        self.cache.verify()
        self.cache.store.refresh()
        self._begin_counting()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Turn the cache off early if few samples are found again."""
        self._batches += 1
        if self._batches == _PATIENCE:
            self._judge()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Judge the hits of the epoch."""
        self._judge()
        self._epochs += 1
        if self._epochs == 1 and self.cache is not None and self.cache.off is None:
            self._say_after_the_first()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the backbone's own forward, and drop the features."""
        self._end()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the backbone's own forward after a validation outside of ``fit``."""
        if trainer.state.fn != "fit":
            self._end()

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the backbone's own forward after a test."""
        self._end()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Restore the backbone's own forward after an error."""
        self._end()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restore the backbone's own forward, if that has not happened yet."""
        self._end()

    # --- what is worth it -------------------------------------------------------------------------

    def _begin_counting(self) -> None:
        assert self.cache is not None
        self._batches = 0
        self._start = (self.cache.count.samples, self.cache.count.found)

    def _judge(self) -> None:
        """Turn the cache off if an epoch that should find its samples again finds few of them."""
        cache = self.cache
        if cache is None or cache.off is not None:
            return
        if self._made is None or self._made[0] != cache.made_in:
            self._made = cache.made_in, self._epochs
        if self._epochs - self._made[1] < self._views:
            return  # in these epochs all samples are new
        samples = cache.count.samples - self._start[0]
        found = cache.count.found - self._start[1]
        if samples and found < _RARE * samples:
            cache.give_up(
                f"of {samples:,} samples in this epoch {found:,} had been seen before: random "
                "augmentation (lp.RepeatedViews around the data set makes it repeat), data that "
                "differs in each epoch, or no room (max_bytes)"
            )

    def _say_after_the_first(self) -> None:
        assert self.cache is not None
        if not self.cache.calls:
            self.cache.give_up(
                "the module never called the backbone's own forward in an epoch (it may call "
                "parts of it, such as forward_features)"
            )
        elif self.cache.store.full:
            _say(
                f"FeatureCache: no space was left after {len(self.cache.store):,} samples; "
                "the others are computed in each epoch."
            )
        for name, problem in self.cache.store.unreadable.items():
            _say(f"FeatureCache: {name} cannot be read and is not used ({problem}).")

    def _samples(self, trainer: pl.Trainer) -> int | None:
        """Return the number of different samples in the run, if all data sets have a length."""
        total = 0
        for dataset in _datasets(trainer, evaluation=True):
            if not isinstance(dataset, Sized):
                return None
            total += len(dataset) * (dataset.views if _repeats(dataset) else 1)
        return total or None

    def _end(self) -> None:
        if self.cache is not None:
            self.cache.remove()


def _loaders(trainer: pl.Trainer, evaluation: bool) -> Iterator[Any]:
    if trainer.state.fn == "fit":
        yield from tree_leaves(trainer.train_dataloader)
    if trainer.state.fn == "test":
        batches, loaders = trainer.num_test_batches, trainer.test_dataloaders
    else:
        batches, loaders = trainer.num_val_batches, trainer.val_dataloaders
    used = math.inf in batches or any(batches) if isinstance(batches, list) else bool(batches)
    if evaluation and used:
        yield from tree_leaves(loaders)


def _datasets(trainer: pl.Trainer, evaluation: bool = False) -> Iterator[Any]:
    for loader in _loaders(trainer, evaluation):
        dataset = getattr(loader, "dataset", None)
        if dataset is not None:
            yield dataset


def _repeats(dataset: object) -> TypeGuard[RepeatedViews]:
    return isinstance(dataset, RepeatedViews)


def _say(message: str) -> None:
    pl_import("utilities.rank_zero").rank_zero_info(message)
