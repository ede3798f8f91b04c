import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_peft.caching import RepeatedViews
from lightning_peft.errors import DataError


class Noisy(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        numpy = np.random.rand()  # noqa: NPY002 (what transforms draw from)
        return torch.cat([torch.rand(2), torch.tensor([random.random(), numpy, float(index)])])


@pytest.mark.parametrize("workers", [0, 1])
def test_views_repeat_and_differ(workers):
    views = RepeatedViews(Noisy(), views=2)
    loader = DataLoader(views, 3, num_workers=workers, persistent_workers=workers > 0)
    epochs = []
    for epoch in range(4):
        views.set_epoch(epoch)
        epochs.append(next(iter(loader)))
    assert torch.equal(epochs[0], epochs[2])
    assert torch.equal(epochs[1], epochs[3])
    assert not (epochs[0][:, :4] == epochs[1][:, :4]).any()
    assert not (epochs[0][0, :4] == epochs[0][1, :4]).any()


def test_the_seed_gives_other_views_and_the_global_generators_stay():
    torch.manual_seed(0)
    random.seed(0)
    before = torch.get_rng_state(), random.getstate()
    first, other = (RepeatedViews(Noisy(), 2, seed=seed)[0] for seed in (0, 1))
    assert not torch.equal(first, other)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()


def test_what_cannot_repeat_is_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([1])

    with pytest.raises(DataError, match="a length and samples by index.*views to be a whole"):
        RepeatedViews(Stream(), views=0)
