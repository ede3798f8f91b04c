"""The base class of the ready data modules: loaders over the samples of their splits."""

from __future__ import annotations

import os
from typing import Any

from torch.utils.data import DataLoader

from lightning_peft.data.sampling import loader_options, train_loader
from lightning_peft.lightning.namespace import pl

__all__ = ["SplitLoaders", "workers"]


class SplitLoaders(pl.LightningDataModule):
    """Loaders over splits; a subclass provides the samples of each split.

    Attributes:
        seed: Seed of the order of the training samples.
        batch_size: Samples a training batch, on each rank.
        eval_batch_size: Samples a batch in validation and test.
        steps_per_epoch: Batches an epoch; None is one pass.
        num_workers: Processes that load.
        pin_memory: Whether to page-lock batches; None does if there is a CUDA device.
    """

    seed: int
    batch_size: int
    eval_batch_size: int
    steps_per_epoch: int | None
    num_workers: int
    pin_memory: bool | None

    def _samples(self, split: str, *, training: bool) -> Any:
        """Return the dataset of a split, for training or for evaluation."""
        raise NotImplementedError

    def _epoch_batches(self, samples: Any) -> int | None:
        """Return the number of batches in an epoch; None is one pass over the training samples."""
        return self.steps_per_epoch

    def train_dataloader(self) -> DataLoader[Any]:
        """Return batches of the training samples, in an order that depends on the epoch."""
        samples = self._samples("train", training=True)
        return train_loader(
            samples,
            trainer=self.trainer,
            seed=self.seed,
            batch_size=self.batch_size,
            steps_per_epoch=self._epoch_batches(samples),
            **self._options(),
        )

    def predict_dataloader(self) -> Any:
        """Return batches of the test samples."""
        return self.test_dataloader()

    def plain_dataloader(self, split: str = "train") -> DataLoader[Any]:
        """Return batches of a split as in evaluation: in a fixed order, without augmentation."""
        samples = self._samples(split, training=False)
        return DataLoader(samples, batch_size=self.eval_batch_size, **self._options())

    def _options(self) -> dict[str, Any]:
        return loader_options(self.num_workers, self.pin_memory)


def workers(asked: int | None) -> int:
    """Return how many processes load images; None means the number of CPU cores, at most 8."""
    return min(8, os.cpu_count() or 1) if asked is None else asked
