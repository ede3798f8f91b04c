"""A network that remembers the learning rates of its steps."""

import lightning.pytorch as L
import torch
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from torch.utils.data import DataLoader

from lightning_peft.lightning.schedules import lr_multiplier
from tests.support.trainers import quiet_trainer

RATE = 0.1


BATCHES = 6


class Net(BoringModel):
    """Two groups with rates of their own; remembers the rates that each optimizer step used."""

    def __init__(self, lr=RATE):
        super().__init__()
        self.lr = lr
        self.used = []

    def configure_optimizers(self):
        return torch.optim.SGD(
            [
                {"params": [self.layer.weight], "lr": self.lr},
                {"params": [self.layer.bias], "lr": 16 * self.lr},
            ]
        )

    def train_dataloader(self):
        return DataLoader(RandomDataset(32, BATCHES), batch_size=1)

    def on_before_optimizer_step(self, optimizer):
        self.used.append([group["lr"] for group in optimizer.param_groups])


def trainer(*callbacks, **options):
    return quiet_trainer(*callbacks, **{"max_epochs": 2, "limit_val_batches": 0, **options})


def expected(total, warmup, kind="cosine", steps=None, **options):
    factors = [lr_multiplier(s, total, warmup, kind, **options) for s in range(steps or total)]
    return [[RATE * factor, 16 * RATE * factor] for factor in factors]


class StopAfter(L.Callback):
    """Save a checkpoint after so many steps, and stop there."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True
