"""The first batch of a run is compared with the backbone itself, without changing the run."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_peft as lp
from lightning_peft.lightning.identity import difference_at_start
from lightning_peft.lightning.isolated import isolated
from tests.support.trainers import quiet_trainer

ANOTHER = r"expected 'net' to give its own output .*first in 'second'"


class Branch(nn.Module):
    """Multiplies by two what a plain linear layer gives, and asks for its class."""

    def __init__(self, isinstance_: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.isinstance_ = isinstance_

    def forward(self, x: Tensor) -> Tensor:
        plain = isinstance(self.layer, nn.Linear) if self.isinstance_ else self._is_plain()
        return self.layer(x) * (2.0 if plain else 1.0)

    def _is_plain(self) -> bool:
        return type(self.layer) is nn.Linear


class Net(nn.Module):
    """Draws numbers, counts its calls in every way, and writes into its input."""

    def __init__(self, isinstance_: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 8), Branch(isinstance_)
        self.norm, self.dropout, self.head = nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)
        self.register_buffer("calls", torch.zeros(()))
        self.count, self.total, self.kept = 0, torch.zeros(()), []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.total += 1
        self.count += 1
        self.kept.append(float(x.detach().sum()))
        noise = random.random() + np.random.random() + torch.rand(())  # noqa: NPY002
        x.add_(1.0)
        x = self.second(self.first(x).relu())
        return self.head(self.dropout(self.norm(x))) * (1 + 0.1 * noise) + 0.01 * self.count


class Task(L.LightningModule):
    def __init__(self, isinstance_: bool = True) -> None:
        super().__init__()
        self.net = Net(isinstance_)
        self.losses: list[float] = []
        self.seen: list[Tensor] = []
        self.net.first.register_forward_hook(self._see)

    def _see(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.seen.append(output.detach())

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        target = (batch[:, 0] > 0).long()
        loss = nn.functional.cross_entropy(self.net(batch), target) + 0.1 * len(self.seen)
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> DataLoader[Tensor]:
        generator = torch.Generator().manual_seed(0)
        return DataLoader(list(torch.randn(24, 8, generator=generator)), batch_size=8)


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """EfficiencyMonitor writes its figures to the working directory of a run without a logger."""
    monkeypatch.chdir(tmp_path)


def fit(task: Task, *, method: Any = None, ckpt_path: Any = None, **settings: Any) -> L.Trainer:
    method = method or lp.LoRA(rank=2, targets=["first", "layer"])
    trainer_settings = {key: settings.pop(key) for key in ("precision",) if key in settings}
    random.seed(0), np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    callbacks = [lp.PEFT(method, head="head", **settings), lp.EfficiencyMonitor()]
    trainer = quiet_trainer(*callbacks, max_epochs=1, **trainer_settings)
    trainer.fit(task, ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_a_forward_that_asks_for_the_class_of_a_layer_is_told(precision: Any) -> None:
    with pytest.warns(UserWarning, match=ANOTHER) as told:
        fit(Task(isinstance_=False), precision=precision)
    assert sum("its own output" in str(warning.message) for warning in told) == 1


def test_it_can_be_switched_off() -> None:
    fit(Task(isinstance_=False), check_identity=False)  # a warning would be an error


@pytest.mark.parametrize("method", [lp.SSF(targets=["first"]), "full", "bitfit"])
def test_a_method_with_another_start_or_without_an_adapter_is_not_compared(method: Any) -> None:
    fit(Task(isinstance_=False), method=method)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_run_is_the_same_with_and_without_bit_for_bit(precision: Any) -> None:
    tasks = []
    for check in (True, False):
        task = Task()
        trainer = fit(task, check_identity=check, precision=precision)
        tasks.append((task, trainer.callback_metrics))
    (task, logged), (other, logged_there) = tasks
    assert task.losses == other.losses
    for (name, mine), theirs in zip(
        task.state_dict().items(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs), name
    assert (task.net.count, task.net.kept) == (other.net.count, other.net.kept)
    assert task.net.count == 3
    assert torch.equal(task.net.total, other.net.total)
    assert len(task.seen) == len(other.seen) == 3
    flops = "efficiency/step_flops"
    assert logged.get(flops) == logged_there.get(flops)
    assert not task.net._forward_pre_hooks


def test_only_the_first_batch_of_a_new_run_is_looked_at(monkeypatch, tmp_path) -> None:
    looks = []
    monkeypatch.setattr(
        "lightning_peft.lightning.identity._warn", lambda *given: looks.append(given[0])
    )
    task = Task()
    trainer = fit(task)
    assert looks == ["net"]
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    fit(task)  # it is adapted, and trained, already
    resumed = Task()
    fit(resumed, ckpt_path=tmp_path / "a.ckpt")
    adapted = Task()
    lp.adapt(adapted.net, lp.LoRA(rank=2, targets=["first", "layer"]), head="head")
    fit(adapted)
    assert looks == ["net"]


def test_compiled_modules_are_not_looked_at(monkeypatch) -> None:
    monkeypatch.setattr("lightning_peft.lightning.identity._warn", lambda *given: 1 / 0)
    task = Task()
    task.net.first.compile(backend="eager")
    fit(task)


def test_a_first_batch_that_fails_leaves_no_hook() -> None:
    class Fails(Task):
        def training_step(self, batch: Tensor, index: int) -> Tensor:
            raise KeyError("mine")

    task = Fails()
    with pytest.raises(KeyError, match="mine"):
        fit(task)
    assert not task.net._forward_pre_hooks


def test_how_much_an_adapter_changes_is_in_multiples_of_rounding() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    adaptation = lp.adapt(net, lp.LoRA(rank=2, targets=["0"]), head=False)
    x = torch.randn(5, 4)
    assert difference_at_start(adaptation, (x,), {}) == pytest.approx(0.0, abs=1e-2)
    with adaptation.disabled(), torch.no_grad():
        bare = net(x[:2])
    with torch.no_grad():
        net[0].lora_B["default"].weight.normal_()
        mine = net(x[:2])
    share = float((mine - bare).abs().max() / bare.abs().max())
    assert difference_at_start(adaptation, (x,), {}) == pytest.approx(share / 1e-3, rel=1e-3)
    assert difference_at_start(adaptation, (object(),), {}) is None
    assert difference_at_start(adaptation, (x[:, :3],), {}) is None


def test_the_first_rows_of_a_batch_are_looked_at_where_a_forward_takes_them() -> None:
    sizes: list[int] = []

    class Net(nn.Module):
        def __init__(self, least: int) -> None:
            super().__init__()
            self.layer, self.least = nn.Linear(4, 4), least

        def forward(self, x: Tensor, weights: Tensor) -> Tensor:
            sizes.append(len(x))
            return self.layer(x).reshape(self.least, -1, 4) * weights[0]

    for least, expected in ((2, [2, 2]), (3, [2, 6, 6])):
        adaptation = lp.adapt(Net(least), lp.LoRA(rank=2, targets=["layer"]), head=False)
        sizes.clear()
        assert difference_at_start(adaptation, (torch.randn(6, 4), torch.ones(6)), {}) < 1
        assert sizes == expected
    difference_at_start(adaptation, (torch.randn(6, 4), torch.ones(5)), {})
    assert sizes[-1] == 6


def test_padded_places_of_an_encoder_are_no_difference() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    net = nn.TransformerEncoder(layer, 2)
    adaptation = lp.adapt(net, lp.LoRA(rank=2), head=False)
    mask = torch.tensor([[False] * 4, [False, False, True, True]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = {"src_key_padding_mask": mask}
        assert difference_at_start(adaptation, (torch.randn(2, 4, 8),), given) < 1


def test_modes_and_attributes_are_restored_after_an_error() -> None:
    net = Net()
    net.norm.eval()
    adaptation = lp.adapt(net, lp.LoRA(rank=2, targets=["first", "layer"]), head="head")
    before = list(net.kept), net.training, net.norm.training
    hooks, kinds = net._forward_hooks, [type(module) for module in net.modules()]

    def fails() -> None:
        with isolated(adaptation, (), bare=True):
            assert type(net.first) is nn.Linear
            net.kept.append(1.0)
            net.new = 1
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fails()
    assert (net.kept, net.training, net.norm.training) == before
    assert not hasattr(net, "new")
    assert net._forward_hooks is hooks
    assert [type(module) for module in net.modules()] == kinds
