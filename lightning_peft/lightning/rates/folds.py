"""Training data in folds: loaders of what a short run trains on, and of what it is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from lightning_peft.data.sampling import Draw, train_loader
from lightning_peft.errors import DataError
from lightning_peft.lightning.datamodules.loaders import SplitLoaders
from lightning_peft.lightning.namespace import pl
from lightning_peft.system.randomness import generator

__all__ = ["Fold", "in_folds"]


MOST_HELD = 512
"""The most samples that a run is measured on; the others of its fold are trained on."""


class Fold(NamedTuple):
    """The loaders of a fold.

    Attributes:
        train: Of the samples outside the fold, as in training.
        measured: Of those in it, as in evaluation where the data tells both apart.
        whole: The data module that they are of, if there is one.
    """

    train: DataLoader[Any]
    measured: DataLoader[Any]
    whole: Any = None

    def data(self) -> Any:
        """Return a data module of the fold, which has what else the whole one has."""
        return _OfFold(self)


class _OfFold(pl.LightningDataModule):
    """Trains on what is outside a fold and validates on what is in it.

    Statistics of the targets, names of the classes and the like are those of the whole data.
    """

    def __init__(self, fold: Fold) -> None:
        super().__init__()
        self.fold = fold

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "fold" or self.fold.whole is None:
            raise AttributeError(f"'{type(self).__name__}' has no attribute '{name}'")
        return getattr(self.fold.whole, name)

    def train_dataloader(self) -> DataLoader[Any]:
        return self.fold.train

    def val_dataloader(self) -> DataLoader[Any]:
        return self.fold.measured


class _Part(Dataset[Any]):
    """Some samples of a dataset that takes a :class:`Draw` as index, alone or several at once."""

    def __init__(self, samples: Any, indices: Sequence[int]) -> None:
        self.samples, self.indices = samples, list(indices)
        if hasattr(samples, "__getitems__"):
            self.__getitems__ = lambda several: samples.__getitems__([*map(self._index, several)])

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        return self.samples[self._index(index)]

    def _index(self, index: Any) -> Any:
        if isinstance(index, Draw):
            return index._replace(image=self.indices[index.image])
        return self.indices[index]


def in_folds(data: Any, folds: int, seed: int) -> list[Fold]:
    """Divide training data into folds, with as much of each class in every fold.

    Args:
        data: A data module, which is set up, or the loader of the training data.
        folds: Their number.
        seed: Seed of the division.

    Returns:
        The folds.

    Raises:
        DataError: If the data has no number of samples, or too few.
    """
    if isinstance(data, SplitLoaders):
        training, plain = (data._samples("train", training=flag) for flag in (True, False))
        options: dict[str, Any] = data._options() | {"num_workers": 0, "persistent_workers": False}

        def fold_of(inside: list[int], outside: list[int]) -> Fold:
            train = train_loader(
                _Part(training, outside),
                trainer=None,
                seed=data.seed,
                batch_size=min(data.batch_size, len(outside)),
                steps_per_epoch=None,
                **options,
            )
            part = _Part(plain, inside)
            measured = DataLoader(part, batch_size=data.eval_batch_size, **options)
            return Fold(train, measured, data)
    else:
        loader = data if isinstance(data, DataLoader) else data.train_dataloader()
        training = _samples_of(loader)
        common: dict[str, Any] = {"collate_fn": loader.collate_fn, "pin_memory": loader.pin_memory}

        def fold_of(inside: list[int], outside: list[int]) -> Fold:
            size = min(loader.batch_size or 1, len(outside))
            order = generator("order", seed)
            return Fold(
                DataLoader(
                    Subset(training, outside), size, shuffle=True, generator=order, **common
                ),
                DataLoader(Subset(training, inside), loader.batch_size or 1, **common),
                None if loader is data else data,
            )

    place = _places(training, folds, seed)
    return [
        fold_of(
            [index for index, at in enumerate(place) if at == fold],
            [index for index, at in enumerate(place) if at != fold],
        )
        for fold in range(folds)
    ]


def _samples_of(loader: Any) -> Any:
    """Return the dataset of a loader, if it can be divided."""
    samples = getattr(loader, "dataset", None)
    if samples is None or isinstance(samples, IterableDataset) or not hasattr(samples, "__len__"):
        raise DataError(
            "Expected training data with a length, so that parts of it can be held out, got "
            f"{type(loader).__name__} over {type(samples).__name__}: give the rate as a number."
        )
    return samples


def _places(samples: Any, folds: int, seed: int) -> list[int]:
    """Return the fold that each sample is measured in, or ``folds`` if it is only trained on."""
    count = len(samples)
    if count < 2 * folds:
        raise DataError(
            f"Expected at least {2 * folds} training samples for {folds} folds, got {count}: give "
            "the rate as a number."
        )
    classes = _classes_of(samples, count)
    place = [folds] * count
    taken: dict[Any, int] = {}
    order = torch.randperm(count, generator=generator("folds", seed)).tolist()
    for index in order[: folds * MOST_HELD]:
        kind = classes[index]
        # classes begin in different folds, so that small ones do not all fill the first
        place[index] = taken.setdefault(kind, len(taken)) % folds
        taken[kind] += 1
    return place


def _classes_of(samples: Any, count: int) -> list[Any]:
    """Return the class of each sample if the dataset tells it, otherwise the same for all."""
    for name in ("labels", "targets"):
        found = getattr(samples, name, None)
        if found is None or not hasattr(found, "__len__") or len(found) != count:
            continue
        values = found.tolist() if isinstance(found, torch.Tensor) else list(found)
        if all(isinstance(value, int | str) or hasattr(value, "item") for value in values):
            return [value.item() if hasattr(value, "item") else value for value in values]
    return [None] * count
