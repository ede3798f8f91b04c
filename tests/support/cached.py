"""Small runs with the feature cache, and how two of them are compared."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from tests.support.trainers import quiet_trainer
from tests.support.zoo import BATCH, CLASSES, build, example_input, output_of

SAMPLES = 8


def samples(name, count=SAMPLES):
    """Inputs of a model, one a sample."""
    batches = [example_input(name, seed) for seed in range(count // BATCH)]
    if isinstance(batches[0], dict):
        return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
    return torch.cat(batches)


class Rows(Dataset):
    def __init__(self, inputs, noise=0.0):
        self.inputs = inputs
        self.noise = noise

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        if isinstance(self.inputs, dict):
            return {key: value[index] for key, value in self.inputs.items()}, index % CLASSES
        image = self.inputs[index]
        return image + self.noise * torch.randn_like(image), index % CLASSES


class Net(L.LightningModule):
    def __init__(self, name="vit", data=None, validate=True, net=None, shuffle=True):
        super().__init__()
        self.shuffle = shuffle
        self.name = name
        self.net = build(name) if net is None else net
        self.rows = Rows(samples(name)) if data is None else data
        self.validate = validate
        self.losses = []

    def loss(self, batch):
        inputs, labels = batch
        loss = nn.functional.cross_entropy(output_of(self.net, self.name, inputs), labels)
        self.losses.append((self.training, float(loss.detach())))
        return loss

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.loss(batch)

    def configure_optimizers(self):
        # not Adam, which divides a gradient by its size: rounding alone, where it is nothing else,
        # would become whole steps
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def train_dataloader(self):
        if not self.shuffle:
            return DataLoader(self.rows, batch_size=4)
        generator = torch.Generator().manual_seed(3)
        return DataLoader(self.rows, batch_size=3, shuffle=True, generator=generator)

    def val_dataloader(self):
        return DataLoader(self.rows, batch_size=4)


def fit(module, *callbacks, **options):
    L.seed_everything(5, verbose=False)
    options = {"max_epochs": 4, "limit_val_batches": None if module.validate else 0, **options}
    quiet_trainer(*callbacks, **options).fit(module)
    return module


def same(left, right):
    """Compare two runs bit for bit: right where features are read back in the batches of before."""
    mine, theirs = left.state_dict(), right.state_dict()
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name
    assert left.losses == right.losses


def assert_close(mine, theirs):
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        largest = max(float(theirs[name].abs().max()), 0.1)
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=2e-3 * largest, msg=name)


def close(left, right):
    """Compare two runs up to rounding, for features that are read back in another batch.

    There a processor may add up the numbers of the same sample in another order. A run carries the
    difference on: a ResNet's ReLUs and BatchNorms make up to 5e-4 of it in five epochs. A feature
    of another sample would be more than a hundred times as much.
    """
    assert_close(left.state_dict(), right.state_dict())
    assert [mode for mode, _ in left.losses] == [mode for mode, _ in right.losses]
    assert [loss for _, loss in left.losses] == pytest.approx(
        [loss for _, loss in right.losses], rel=2e-3
    )
