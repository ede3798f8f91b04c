"""Small networks that are frozen and thawed by stages, and what records it."""

import lightning.pytorch as L
import timm
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_peft.adaptation.parameter_groups import parameter_groups
from lightning_peft.lightning.callbacks.freeze import Stage
from tests.support.trainers import quiet_trainer

STAGES = [Stage(epoch=1, layers="last:1", lr=0.03), Stage(epoch=2, layers="all", lr=0.02)]


def vit(**options):
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 3, "num_heads": 2}
    options = {**sizes, "num_classes": 2, **options}
    return timm.create_model("vit_tiny_patch16_224", pretrained=False, **options)


def resnet():
    return timm.create_model(
        "resnet18", pretrained=False, num_classes=2, layers=(1, 1, 1, 1), channels=(4, 4, 8, 8),
        stem_width=4,
    )  # fmt: skip


class Net(L.LightningModule):
    def __init__(self, net=vit, optimizer=None):
        super().__init__()
        self.net = net()
        self.make = optimizer

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        if self.make is not None:
            return self.make(self)
        return torch.optim.AdamW(self.parameters(), lr=0.1, weight_decay=0.01)

    def data(self):
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(6, 3, 16, 16, generator=generator)
        return DataLoader(TensorDataset(images, torch.tensor([0, 1] * 3)), batch_size=2)

    train_dataloader = val_dataloader = data


def trainer(*callbacks, **options):
    return quiet_trainer(*callbacks, **{"max_epochs": 4, "limit_val_batches": 0, **options})


def seeded(net=vit, optimizer=None):
    L.seed_everything(1, verbose=False)
    return Net(net, optimizer)


class Record(L.Callback):
    """The parameters, by name, that each epoch changes; and a checkpoint at the end of each."""

    def __init__(self, directory=None):
        self.changed = []
        self.directory = directory

    def on_train_epoch_start(self, trainer, pl_module):
        self.before = {n: p.detach().clone() for n, p in pl_module.named_parameters()}

    def on_train_epoch_end(self, trainer, pl_module):
        now = dict(pl_module.named_parameters())
        self.changed.append({n for n, p in self.before.items() if not torch.equal(p, now[n])})
        if self.directory is not None:
            trainer.save_checkpoint(self.directory / f"{trainer.current_epoch}.ckpt")


HEAD = {"net.head.weight", "net.head.bias"}


def names(module, *prefixes):
    return {n for n, _ in module.named_parameters() if n.startswith(prefixes)}


def filtered(module):
    """What many write: only what requires a gradient now."""
    return torch.optim.AdamW(
        parameter_groups(module.net, 0.1, 0.05)
    )  # which leaves out the frozen parameters
