"""What a module itself fixed stays fixed, wherever the package trains, unless asked for by name."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_peft as lp
from tests.support.trainers import quiet_trainer
from tests.support.zoo import build

INPUT = torch.randn(8, 5, 8, generator=torch.Generator().manual_seed(1))


class Block(nn.Module):
    """Has a gate of its own that is no matter of training."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.norm.bias.requires_grad_(False)
        self.fc = nn.Linear(8, 8)
        self.gate_bias = nn.Parameter(torch.ones(8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gate_bias * self.fc(self.norm(x)).relu()


class Rotation(nn.Module):
    """A layer of a flow: a trained scale, and a fixed rotation that its inverse relies on."""

    def __init__(self) -> None:
        super().__init__()
        rotation = torch.linalg.qr(torch.randn(8, 8))[0]
        self.rotation = nn.Parameter(rotation, requires_grad=False)
        self.log_scale = nn.Parameter(torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1) @ self.rotation * self.log_scale.exp()

    def inverse(self, y: Tensor) -> Tensor:
        return y * (-self.log_scale).exp() @ self.rotation.T


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.positions = nn.Embedding.from_pretrained(torch.randn(5, 8), freeze=True)
        self.blocks = nn.Sequential(Block(), Block(), Block())
        self.head = Rotation()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x + self.positions.weight))


FIXED = {
    "positions.weight",
    *(f"blocks.{i}.{name}" for i in range(3) for name in ("norm.bias", "gate_bias")),
    "head.rotation",
}
ALL = {name for name, _ in Net().named_parameters()}


class Task(L.LightningModule):
    def __init__(self, net: Net | None = None) -> None:
        super().__init__()
        self.net = net or Net()

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        return (self.net(batch) - 1).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD((p for p in self.parameters() if p.requires_grad), lr=0.1)

    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(list(INPUT), batch_size=4)


def test_these_are_what_the_module_fixed() -> None:
    assert {name for name, p in Net().named_parameters() if not p.requires_grad} == FIXED


@pytest.mark.parametrize(
    "method",
    ["full", "norm", "bitfit", lp.LoRA(rank=2, targets="fc"),
     lp.HF("lora", r=2, targets="fc", bias="all"), ["ssf", "bitfit"],
     lp.HF("lora", r=2, targets="fc", modules_to_save=["norm"])],
    ids=str,
)  # fmt: skip
def test_no_method_trains_them(method) -> None:
    model = Net()
    adaptation = lp.adapt(model, method, head="head")
    trained = {name.replace(".base_layer", "") for name in adaptation.trained_names()}
    assert "head.log_scale" in trained
    assert not trained & FIXED
    assert set(adaptation.fixed) == FIXED
    assert "head.rotation" in adaptation.held
    state = {name.replace(".base_layer", "") for name in adaptation.state_names()}
    assert not state & FIXED


def test_the_last_blocks_leave_theirs_fixed() -> None:
    model = build("vit")
    fixed = f"blocks.{len(model.blocks) - 1}.norm1.bias"
    model.get_parameter(fixed).requires_grad_(False)
    expected = set(lp.adapt(build("vit"), lp.LastBlocks(n=1)).trained_names()) - {fixed}
    assert set(lp.adapt(model, lp.LastBlocks(n=1)).trained_names()) == expected


def test_full_trains_all_else_and_a_flow_stays_invertible() -> None:
    module, before = Task(), Net()
    with torch.no_grad():
        before.head.log_scale.fill_(0)
    quiet_trainer(lp.PEFT("full", backbone="net", head="head"), max_epochs=2).fit(module)
    now = dict(module.net.named_parameters())
    changed = {n for n, p in before.named_parameters() if not torch.equal(p, now[n])}
    assert changed == ALL - FIXED
    pooled = INPUT.mean(1)
    torch.testing.assert_close(module.net.head.inverse(module.net.head(INPUT)), pooled)


@pytest.mark.parametrize(
    ("pattern", "asked"),
    [
        ("head", set()),
        ("blocks.*", set()),
        ("head.rotation", {"head.rotation"}),
        ("blocks.*.gate_bias", {f"blocks.{i}.gate_bias" for i in range(3)}),
        ("positions", {"positions.weight"}),
    ],
)
def test_they_are_trained_if_asked_for_by_name(pattern: str, asked: set[str]) -> None:
    adaptation = lp.adapt(Net(), "linear_probe", head="head", also_train=pattern)
    assert set(adaptation.trained_names()) & FIXED == asked
    assert set(adaptation.fixed) == FIXED - asked


def test_nothing_but_fixed_parameters_is_refused() -> None:
    model = Net()
    model.head.log_scale.requires_grad_(True)
    with pytest.raises(lp.MethodError, match=r"only parameters that the module fixed.*gate_bias"):
        lp.adapt(model, lp.BitFit(targets="re:blocks.*", exclude="re:.*fc"), head=False)


def test_a_model_that_was_frozen_as_a_whole_is_trained_as_a_whole() -> None:
    model = Net().requires_grad_(False)
    assert set(lp.adapt(model, "full", head="head").trained_names()) == ALL
    model = Net().requires_grad_(False)
    model.head.requires_grad_(True)  # as for a linear probe
    model.head.rotation.requires_grad_(False)
    assert set(lp.adapt(model, "full", head="head").trained_names()) == ALL - {"head.rotation"}


def test_a_backbone_that_was_adapted_before_is_as_it_was() -> None:
    model = Net()
    lp.adapt(model, "bitfit", head="head").unload()
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == FIXED
    lp.adapt(model, lp.LoRA(rank=2, targets="fc"), head="head").merge_and_unload()
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == FIXED
    assert set(lp.adapt(model, "full", head="head").trained_names()) == ALL - FIXED


def test_a_loaded_adapter_is_that_of_its_file_whatever_is_frozen_here(tmp_path: Path) -> None:
    model = Net()
    adaptation = lp.adapt(model, "bitfit", head="head")
    adaptation.save(tmp_path)
    frozen_here = Net()
    frozen_here.blocks[0].requires_grad_(False)
    again = lp.find_adaptation(lp.load_adapter(frozen_here, tmp_path))
    assert again.trained_names() == adaptation.trained_names()
    assert again.fixed == adaptation.fixed
    thawed_here = Net().requires_grad_(True)
    again = lp.find_adaptation(lp.load_adapter(thawed_here, tmp_path))
    assert again.trained_names() == adaptation.trained_names()


def test_stages_leave_them_fixed() -> None:
    module = Task()
    method = lp.LoRA(rank=2, targets="fc")
    stages = lp.BackboneFreeze(unfreeze=[lp.Stage(epoch=1, layers="all", lr=0.1)])
    trainer = quiet_trainer(lp.PEFT(method, backbone="net", head="head"), stages, max_epochs=2)
    trainer.fit(module)
    now = {n.replace(".base_layer", ""): p for n, p in module.net.named_parameters()}
    before = dict(Net().named_parameters())
    changed = {n for n, p in before.items() if not torch.equal(p, now[n])}
    assert changed == ALL - FIXED


@pytest.mark.filterwarnings("ignore:BackboneFreeze. the run of 1 epochs:UserWarning")
def test_what_the_package_froze_is_not_fixed() -> None:
    task = Task()
    stages = lp.BackboneFreeze(unfreeze=[lp.Stage(epoch=5, layers="all")], head="head")
    quiet_trainer(stages, max_epochs=1).fit(task)
    assert not any(p.requires_grad for p in task.net.blocks.parameters())
    assert set(lp.adapt(task.net, "full", head="head").fixed) == FIXED
