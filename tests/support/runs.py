"""A user's module, the trainer around it, and what a run left: for the tests of the callbacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.transformer import LightningTransformer
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tests.support.trainers import quiet_trainer
from tests.support.zoo import build

WORDS = 50


class Words(Dataset):
    """What the demo's WikiText2 gives, without the download."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        data = torch.randint(0, WORDS, (9,), generator=torch.Generator().manual_seed(index))
        return data[:-1], data[1:]


class Demo(LightningTransformer):
    """Lightning's own demo; only the download of its text is left out."""

    def __init__(self) -> None:
        super().__init__(vocab_size=WORDS)

    def prepare_data(self) -> None:
        pass


class Classifier(L.LightningModule):
    """A user's module: a timm backbone, an optimizer over everything, nothing of this package."""

    def __init__(self, name: str = "vit", lr: float = 1e-2, late: str = "init") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net: nn.Module
        if late == "init":
            self.net = build(name).train()

    def setup(self, stage: str) -> None:
        if self.hparams["late"] == "setup" and not hasattr(self, "net"):
            self.net = build(self.hparams["name"]).train()

    def configure_model(self) -> None:
        if self.hparams["late"] == "configure_model" and not hasattr(self, "net"):
            self.net = build(self.hparams["name"]).train()

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    test_step = validation_step

    def predict_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.net(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.hparams["lr"])


def images(n: int = 8, shuffle: bool = False) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(n, 3, 32, 32, generator=generator)
    return DataLoader(TensorDataset(data, torch.arange(n) % 3), batch_size=4, shuffle=shuffle)


def trainer(tmp_path: Path, *callbacks: L.Callback, **settings: Any) -> L.Trainer:
    writes = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    given = {"default_root_dir": tmp_path, "max_epochs": 1, "enable_checkpointing": writes}
    return quiet_trainer(*callbacks, **{**given, **settings})


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in a if not torch.equal(a[name], b[name])}
