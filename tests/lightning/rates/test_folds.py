"""Folds of the training data: what is trained on and what is measured, of which samples."""

from collections import Counter

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import lightning_peft as lp
from lightning_peft.lightning.rates import folds as module
from lightning_peft.lightning.rates.folds import in_folds

INPUTS = torch.arange(24.0).unsqueeze(1)


def loader(count=24, size=4):
    return DataLoader(TensorDataset(INPUTS[:count]), batch_size=size, shuffle=True)


def seen(batches):
    return sorted(value for batch in batches for value in batch[0].flatten().tolist())


def test_each_sample_is_measured_in_one_fold_and_trained_on_in_the_others():
    folds = in_folds(loader(), 3, seed=0)
    assert sorted(x for fold in folds for x in seen(fold.measured)) == INPUTS.flatten().tolist()
    for fold in folds:
        assert sorted(seen(fold.train) + seen(fold.measured)) == INPUTS.flatten().tolist()
    assert seen(in_folds(loader(), 3, seed=1)[0].measured) != seen(folds[0].measured)


def test_more_than_enough_samples_are_only_trained_on(monkeypatch):
    monkeypatch.setattr(module, "MOST_HELD", 5)
    for fold in in_folds(loader(), 2, seed=0):
        assert (len(seen(fold.measured)), len(seen(fold.train))) == (5, 19)


@pytest.mark.parametrize("augment", [None, "light"])
def test_digits_are_divided_class_by_class_and_augmented_only_in_training(augment):
    data = lp.DigitsDataModule(labels_per_class=6, val_per_class=0, augment=augment)
    data.setup("fit")
    (plain,) = DataLoader(data.images("train"), 100, collate_fn=lambda batch: batch)

    def places(batches):
        """The place of each image among the plain ones, and its label."""
        images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        same = (images.unsqueeze(1) == plain[0]).flatten(2).all(2)
        return same.float().argmax(1)[same.any(1)].tolist(), labels, len(images)

    for fold in in_folds(data, 2, seed=0):
        measured, labels, _ = places(fold.measured)
        assert Counter(labels.tolist()) == dict.fromkeys(range(10), 3)
        assert len(measured) == 30
        assert (plain[1][measured] == labels).all()
        trained, labels, count = places(fold.train)
        assert count == 30
        assert Counter(labels.tolist()) == dict.fromkeys(range(10), 3)
        if augment is None:
            assert sorted(trained + measured) == list(range(60))
            assert (plain[1][trained] == labels).all()
        else:
            assert not trained  # none is as it was


def test_what_cannot_be_divided_is_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            yield from INPUTS

    with pytest.raises(lp.DataError, match=r"with a length, .*got DataLoader over Stream"):
        in_folds(DataLoader(Stream()), 2, seed=0)
    with pytest.raises(lp.DataError, match="at least 6 training samples for 3 folds, got 5"):
        in_folds(loader(5), 3, seed=0)


def test_a_run_on_a_fold_has_what_the_whole_data_has_and_the_samples_of_the_fold():
    data = lp.DigitsDataModule(labels_per_class=4, val_per_class=2)
    data.setup("fit")
    (fold, _) = in_folds(data, 2, seed=0)
    of_fold = fold.data()
    assert (of_fold.num_classes, of_fold.class_names) == (10, data.class_names)
    assert (of_fold.train_dataloader(), of_fold.val_dataloader()) == (fold.train, fold.measured)
    with pytest.raises(AttributeError, match="no attribute 'class_names'"):
        in_folds(loader(), 2, seed=0)[0].data().class_names  # noqa: B018
