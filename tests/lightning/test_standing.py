"""A module whose backbone is found once: adapter layers are no part of it, and no blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_peft as lp
from lightning_peft.adaptation.handle import find_adaptations
from lightning_peft.anatomy import anatomy
from lightning_peft.anatomy.backbone import backbone_of
from tests.support.trainers import quiet_trainer
from tests.support.zoo import build


class Messages(nn.Module):
    """A graph network's layers, as chemprop names them."""

    def __init__(self) -> None:
        super().__init__()
        self.W_i, self.W_h = nn.Linear(6, 16), nn.Linear(16, 16)
        self.W_o, self.W_d = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.W_i(x).relu()
        return self.W_d(self.W_o((hidden + self.W_h(hidden)).relu()))


class Net(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.mp = Messages()
            self.ffn = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 1))

    def training_step(self, batch: Any, index: int) -> Tensor:
        loss = (self.ffn(self.mp(batch[0])).squeeze(1) - batch[1]).square().mean()
        self.log("loss", loss)
        return loss

    validation_step = test_step = training_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.02)


def data() -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(32, 6, generator=generator)
    return DataLoader(TensorDataset(inputs, inputs[:, 0]), batch_size=8)


def trainer(*more: L.Callback, epochs: int = 1) -> L.Trainer:
    return quiet_trainer(lp.PEFT("lora"), *more, max_epochs=epochs)


def test_a_second_search_finds_the_same_backbone() -> None:
    module = Net()
    assert backbone_of(module)[0] == ""
    lp.adapt(module, "lora", head=False)
    assert backbone_of(module)[0] == ""


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.LSTM(8, 8) for _ in range(2))
        self.fc = nn.Linear(8, 2)


@pytest.mark.parametrize("method", ["lora", "ssf", "hydra", "fact_tt"])
@pytest.mark.parametrize("name", ["resnet", "beit", "tv_vit", "llama", "stack"])
def test_a_second_search_sees_no_adapter(name: str, method: str) -> None:
    model = Stack() if name == "stack" else build(name)
    before = anatomy(model)
    try:
        lp.adapt(model, method)
    except (lp.MethodError, lp.TargetError):
        pytest.skip("the method does not serve this model")
    after = anatomy(model)
    assert (after.head, after.blocks, after.roles) == (before.head, before.blocks, before.roles)


def test_groups_have_the_head_that_the_adaptation_was_given() -> None:
    module = Net()
    lp.adapt(module.mp, "lora", head="W_d")
    groups = {g["name"]: g["params"] for g in lp.parameter_groups(module, 1e-3, head_lr=1e-2)}
    heads = {id(p) for name, params in groups.items() if "head" in name for p in params}
    assert {id(p) for p in module.mp.W_d.parameters()} <= heads
    decayed = lp.parameter_groups(adapted_vit(), 1e-3, layer_decay=0.5)
    plain = lp.parameter_groups(build("vit"), 1e-3, layer_decay=0.5)
    assert {g["lr"] for g in decayed} <= {g["lr"] for g in plain}


def adapted_vit() -> nn.Module:
    return lp.adapt(build("vit"), "lora").model


def test_the_adapted_backbone_is_used_by_every_later_command(tmp_path: Path) -> None:
    module, first = Net(), trainer()
    first.fit(module, data(), data())
    standing = lp.find_adaptation(module)
    assert standing is not None
    path = tmp_path / "one.ckpt"
    first.save_checkpoint(path)
    expected = first.test(module, data(), verbose=False)
    assert trainer().validate(module, data(), verbose=False) == expected
    trainer().fit(module, data(), data())
    assert find_adaptations(module) == {"": standing}

    fresh = lp.load_from_checkpoint(Net, path)
    assert trainer().test(fresh, data(), verbose=False) == expected
    resumed = Net()
    trainer(epochs=2).fit(resumed, data(), data(), ckpt_path=path)
    assert list(find_adaptations(resumed)) == [""]


def test_other_callbacks_look_at_it_too() -> None:
    module = Net()
    for _ in range(2):
        peft = lp.PEFT(["lora", "bitfit"])
        quiet_trainer(peft, lp.L2SP(0.1), max_epochs=1).fit(module, data())
    assert list(find_adaptations(module)) == [""]


def test_another_method_is_still_refused() -> None:
    module = Net()
    trainer().fit(module, data())
    with pytest.raises(lp.MethodError, match="the backbone 'Net' is adapted with LoRA"):
        quiet_trainer(lp.PEFT("bitfit"), max_epochs=1).fit(module, data())
