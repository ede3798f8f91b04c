"""A gradient of zeros is no gradient, unless the first steps explain it."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import peft
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_peft as lp
from tests.support.trainers import quiet_trainer


class Net(nn.Module):
    """Uses the second of its layers, times a factor."""

    def __init__(self, factor: float, head: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)
        self.factor = factor
        with torch.no_grad():
            self.head.weight.mul_(head)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.head(x + self.factor * self.second(x))


class Task(L.LightningModule):
    def __init__(self, net: Net, warmup: int = 0) -> None:
        super().__init__()
        self.net, self.warmup = net, warmup

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch), (batch[:, 0] > 0).long())

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step > self.warmup))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}

    def train_dataloader(self) -> DataLoader[Tensor]:
        generator = torch.Generator().manual_seed(0)
        return DataLoader(list(torch.randn(64, 8, generator=generator)), batch_size=8)


def fit(task: Task, method: object = None, **settings: object) -> L.Trainer:
    method = method or lp.LoRA(rank=2, targets=["first", "second"])
    trainer = quiet_trainer(lp.PEFT(method, head="head", **settings), max_epochs=1)
    trainer.fit(task)
    return trainer


@pytest.mark.parametrize("method", [None, lp.SSF(targets=["first", "second"])], ids=["lora", "ssf"])
def test_what_is_multiplied_by_zero_is_named(method: object) -> None:
    with pytest.raises(lp.MethodError, match=r"a gradient of zeros: net\.second\.") as error:
        fit(Task(Net(factor=0.0)), method)
    assert "net.first" not in str(error.value)
    assert fit(Task(Net(factor=0.0)), method, check_gradients=False).global_step == 8


def test_zeros_in_the_middle_of_a_run_do_not_keep_it_from_going_on(tmp_path: Path) -> None:
    method = lp.LoRA(rank=2, targets=["first", "second"])
    trainer = quiet_trainer(lp.PEFT(method, head="head"), max_epochs=1)
    trainer.fit(Task(Net(factor=1.0)))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = quiet_trainer(lp.PEFT(method, head="head"), max_epochs=2)
    again.fit(Task(Net(factor=0.0)), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert again.global_step == 16


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("head", [0.0, 1.0])
def test_zeros_of_the_first_steps_are_no_reason(head: float, warmup: int) -> None:
    assert fit(Task(Net(factor=1.0, head=head), warmup)).global_step == 8


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_model_that_is_frozen_after_it_was_adapted_is_refused(when: str) -> None:
    """``peft.prepare_model_for_kbit_training`` freezes everything, an adapter too."""

    class Prepared(Task):
        def __init__(self, net: Net) -> None:
            super().__init__(net)
            if when == "before":
                self.prepare()

        def on_fit_start(self) -> None:
            if when == "after":
                self.prepare()

        def prepare(self) -> None:
            peft.prepare_model_for_kbit_training(self.net, use_gradient_checkpointing=False)

    if when == "before":
        assert fit(Prepared(Net(factor=1.0))).global_step == 8
        return
    with pytest.raises(lp.MethodError, match="froze the model after it was adapted. Do so before"):
        fit(Prepared(Net(factor=1.0)))


class Extractor(Task):
    """Computes its features without gradients, and trains what is behind them."""

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        with torch.no_grad():
            features = self.net.second(self.net.first(batch).relu())
        return nn.functional.cross_entropy(self.net.head(features), (batch[:, 0] > 0).long())


def test_an_extractor_of_fixed_features_is_told_apart() -> None:
    with pytest.raises(
        lp.MethodError, match=r"all that the adapter has: .* 'net' without gradients .*backbone="
    ):
        fit(Extractor(Net(1.0)))


def test_a_norm_over_one_value_is_named() -> None:
    """Its gradient is zero up to rounding, which another processor may do otherwise."""
    net = Net(factor=0.0)
    net.head = nn.Sequential(nn.Linear(8, 1), nn.LayerNorm(1), nn.Linear(1, 2))
    with pytest.raises(
        lp.MethodError, match=r"a norm over one value lets nothing through \('?net\.head\.1'?\)"
    ):
        fit(Task(net), lp.LoRA(rank=2, targets=["second"]))
