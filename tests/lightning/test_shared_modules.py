"""A module that has two names: in a backbone (``self.k = self.q``), or the backbone itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader

import lightning_peft as lp
from tests.support.trainers import quiet_trainer

RANK = 2
INPUT = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))


class Attention(nn.Module):
    """Queries and keys by one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(16, 16)
        self.k = self.q
        self.v = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return (self.q(x) @ self.k(x).mT / 4).softmax(-1) @ self.v(x)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Attention(), Attention(), nn.Linear(16, 3))


class Task(L.LightningModule):
    """Has the network, or a part of it, under a second name."""

    def __init__(self, part: str = "", first: bool = False) -> None:
        super().__init__()
        net = network()
        if first:
            self.again = net.get_submodule(part)
        self.net = net
        self.again = net.get_submodule(part)

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        return self.net(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def validation_step(self, batch: Tensor, index: int) -> None:
        self.net(batch)

    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(list(INPUT), batch_size=2)

    val_dataloader = train_dataloader


def moved(adaptation: lp.Adaptation) -> None:
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in adaptation.trained_parameters():
            parameter.add_(torch.randn_like(parameter) / 4)


@torch.no_grad()
def test_both_names_have_the_update_before_and_after_merging(tmp_path: Path) -> None:
    plain, model = network(), network()
    adaptation = lp.adapt(model, lp.LoRA(rank=RANK, targets=["q", "v"]), head="2")
    moved(adaptation)
    weights = dict(plain.named_parameters())
    for name in ("0.q", "0.v", "1.q", "1.v"):
        a, b = (model.get_parameter(f"{name}.lora_{side}.default.weight").double() for side in "AB")
        weights[f"{name}.weight"] = (weights[f"{name}.weight"].double() + b @ a).float()
    weights |= {key: model.get_parameter(key) for key in ("2.weight", "2.bias")}
    expected = functional_call(plain, weights, (INPUT,))  # a tied weight is put in everywhere
    torch.testing.assert_close(model(INPUT), expected)

    adaptation.save(tmp_path)
    again = lp.load_adapter(network(), tmp_path)
    assert torch.equal(again(INPUT), model(INPUT))
    adaptation.merge()
    torch.testing.assert_close(model(INPUT), expected)
    merged = adaptation.merge_and_unload()
    torch.testing.assert_close(merged(INPUT), expected)
    assert merged[0].k is merged[0].q
    assert merged.state_dict().keys() == network().state_dict().keys()


def test_a_file_of_peft_means_another_function_here(tmp_path: Path) -> None:
    import peft

    config = peft.LoraConfig(r=RANK, target_modules=["q", "v"])
    by_peft = peft.get_peft_model(network(), config)
    assert type(by_peft.base_model.model[0].k) is nn.Linear
    by_peft.save_pretrained(str(tmp_path))
    with pytest.raises(lp.AdapterFileError, match="peft adapts a module under its first name"):
        lp.load_adapter(network(), tmp_path)


def callback() -> lp.PEFT:
    return lp.PEFT("lora", rank=RANK, targets=["q", "v"], backbone="net", head="2")


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("part", ["", "0"])
def test_the_checkpoint_holds_each_trained_number_once(tmp_path, part, first) -> None:
    def fit(epochs: int, **settings: Any) -> Task:
        module = Task(part, first)
        torch.manual_seed(5)
        trainer = quiet_trainer(callback(), max_epochs=epochs)
        trainer.fit(module, **settings)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return module

    fit(1)
    state = torch.load(tmp_path / "1.ckpt", weights_only=True)["state_dict"]
    trained = 4 * RANK * (16 + 16) + 3 * 17
    assert sum(tensor.numel() for tensor in state.values()) == trained
    assert {name.split(".")[0] for name in state} == {"again" if first and not part else "net"}

    whole, resumed = fit(2), fit(2, ckpt_path=tmp_path / "1.ckpt", weights_only=True)
    assert resumed.again is resumed.net.get_submodule(part)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


def test_a_checkpoint_from_before_the_adaptation_is_loaded(tmp_path: Path) -> None:
    before, module = Task(), Task()
    with torch.no_grad():
        before.net[0].q.weight.mul_(2)
    trainer = quiet_trainer(max_epochs=0)
    trainer.fit(before)
    trainer.save_checkpoint(tmp_path / "before.ckpt", weights_only=True)
    quiet_trainer(callback()).validate(
        module, ckpt_path=tmp_path / "before.ckpt", weights_only=True, verbose=False
    )
    assert torch.equal(module.net[0].k.base_layer.weight, before.net[0].q.weight)
