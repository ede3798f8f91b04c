"""A linear probe on a module whose head is beside the backbone: the head alone is trained."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_peft as lp
from lightning_peft.adaptation.handle import find_adaptation
from tests.support.trainers import quiet_trainer

SIZE = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}


class Net(L.LightningModule):
    def __init__(self, fixed_head: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.backbone = timm.create_model("vit_tiny_patch16_224", **SIZE)
            self.head = nn.Linear(32, 3).requires_grad_(not fixed_head)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))

    def training_step(self, batch: Any, index: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.02)


def data() -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(8, 3, 32, 32, generator=generator)
    return DataLoader(TensorDataset(images, torch.arange(8) % 3), batch_size=4)


def trainer(epochs: int) -> L.Trainer:
    return quiet_trainer(lp.PEFT("linear_probe"), max_epochs=epochs)


def test_the_head_beside_the_backbone_is_trained(tmp_path: Path) -> None:
    module = Net()
    before = copy.deepcopy(module.state_dict())
    fitted = trainer(2)
    fitted.fit(module, data())
    now = module.state_dict()
    assert {n for n in before if not torch.equal(before[n], now[n])} == {"head.weight", "head.bias"}

    path = tmp_path / "probe.ckpt"
    fitted.save_checkpoint(path)
    held = torch.load(path, weights_only=True)["state_dict"]
    assert set(held) == {"head.weight", "head.bias"}
    images = data().dataset.tensors[0]  # type: ignore[attr-defined]
    again = lp.load_from_checkpoint(Net, path)
    assert torch.equal(again.eval()(images), module.eval()(images))
    resumed, whole = Net(), Net()
    trainer(3).fit(resumed, data(), ckpt_path=path)
    trainer(3).fit(whole, data())
    assert torch.equal(resumed.head.weight, whole.head.weight)


def test_there_is_nothing_to_save_as_an_adapter(tmp_path: Path) -> None:
    module = Net()
    trainer(1).fit(module, data())
    adaptation = find_adaptation(module.backbone)
    assert adaptation is not None
    with pytest.raises(lp.AdapterFileError, match="whose head is outside of it. Save a checkpoint"):
        adaptation.save(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_without_anything_to_train_it_is_refused() -> None:
    with pytest.raises(lp.MethodError, match="expected something to train, got nothing"):
        trainer(1).fit(Net(fixed_head=True), data())
