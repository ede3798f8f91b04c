"""L2-SP against a loop by hand, resumed, beside stages and weight decay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import nn

import lightning_peft as lp
from tests.support.runs import Classifier, differing, images, state_of, trainer

ALPHA = 0.3


class Grouped(Classifier):
    """With weight decay, off biases and norms, as the ready module has it."""

    kind: type[torch.optim.Optimizer] = torch.optim.AdamW

    def configure_optimizers(self):
        return self.kind(lp.parameter_groups(self, 0.01, weight_decay=0.1))


class Descending(Grouped):
    kind = torch.optim.SGD


def fit(
    tmp_path: Path, *callbacks, method="full", module=None, epochs=3, ckpt_path=None, **settings
):
    torch.manual_seed(0)
    module = Grouped() if module is None else module
    tr = trainer(tmp_path, lp.PEFT(method), *callbacks, max_epochs=epochs, **settings)
    tr.fit(module, images(), ckpt_path=ckpt_path)
    return module


def by_hand(kind, method, epochs=3, in_the_loss=False):
    """The loop: plain groups, and the pull written out.

    In float64: the bias of a key has a gradient of rounding alone, which Adam divides by itself.
    """
    torch.manual_seed(0)
    module = Classifier().double()
    adaptation = lp.adapt(module.net, method)
    new = {f"net.{n}" for n in [*adaptation.head_names(), *adaptation.adapter_names()]}
    groups = lp.parameter_groups(module, 0.01, weight_decay=0.1)
    decaying = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    start = {n: p.detach().clone() for n, p in trained.items() if n not in new}
    optimizer = kind([
        {"params": [p for n, p in trained.items() if n not in start and id(p) in decaying],
         "weight_decay": 0.1},
        {"params": [p for n, p in trained.items() if n in start or id(p) not in decaying],
         "weight_decay": 0.0},
    ], lr=0.01)  # fmt: skip
    module.train()
    for _ in range(epochs):
        for x, y in images():
            loss = nn.functional.cross_entropy(module.net(x.double()), y)
            if in_the_loss:
                loss = loss + ALPHA / 2 * sum((trained[n] - start[n]).square().sum() for n in start)
            optimizer.zero_grad()
            loss.backward()
            with torch.no_grad():
                for name in start if not in_the_loss else ():
                    trained[name] -= 0.01 * ALPHA * (trained[name] - start[name])
            optimizer.step()
    return state_of(module)


@pytest.mark.parametrize("method", ["full", "bitfit", "norm", "last_blocks"])
def test_it_is_the_loop_by_hand(tmp_path: Path, method: str) -> None:
    found = state_of(fit(tmp_path, lp.L2SP(ALPHA), method=method, precision="64-true"))
    expected = by_hand(torch.optim.AdamW, method)
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, atol=1e-10), name


def test_with_plain_sgd_it_is_the_term_in_the_loss(tmp_path: Path) -> None:
    found = state_of(fit(tmp_path, lp.L2SP(ALPHA), module=Descending(), precision="64-true"))
    expected = by_hand(torch.optim.SGD, "full", in_the_loss=True)
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, atol=1e-10), name


def test_no_strength_changes_nothing(tmp_path: Path) -> None:
    assert not differing(state_of(fit(tmp_path)), state_of(fit(tmp_path, lp.L2SP(0.0))))


def test_a_strong_pull_stays_near_the_start_and_the_head_is_free(tmp_path: Path) -> None:
    def moved(*callbacks):
        after = state_of(fit(tmp_path, *callbacks))
        before = state_of(Classifier())
        away = {n: float((after[n] - before[n]).norm()) for n in before}
        return away["net.blocks.0.mlp.fc1.weight"], away["net.head.weight"]

    free, held = moved(), moved(lp.L2SP(50.0))
    assert held[0] < 0.8 * free[0]
    assert held[1] > 0.5 * free[1]


class Groups(lp.WarmupConstant):
    """Keep what the optimizer has for each parameter."""

    def on_train_start(self, trainer, pl_module):
        super().on_train_start(trainer, pl_module)
        names = {id(p): n for n, p in pl_module.named_parameters()}
        (optimizer,) = trainer.optimizers
        self.decay = {
            names[id(p)]: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]
        }


def test_new_parameters_decay_to_zero_as_before(tmp_path: Path) -> None:
    groups = Groups(0)
    fit(tmp_path, groups, lp.L2SP(ALPHA), method=["lora", "bitfit"])
    assert groups.decay["net.head.weight"] == 0.1
    assert all(decay == 0.1 for name, decay in groups.decay.items() if "lora" in name)
    groups = Groups(0)
    fit(tmp_path, groups, lp.L2SP(ALPHA))
    assert groups.decay["net.head.weight"] == 0.1
    assert groups.decay["net.blocks.0.mlp.fc1.weight"] == 0.0


@pytest.mark.parametrize("stages", [False, True], ids=["full", "stages"])
def test_it_resumes_bit_for_bit_and_stores_no_second_copy(tmp_path: Path, stages: bool) -> None:
    def run(name, epochs, ckpt_path=None):
        keep = ModelCheckpoint(tmp_path / name, filename="{epoch}", save_top_k=-1)
        more = [lp.BackboneFreeze(unfreeze=[{"epoch": 1, "layers": "last:1"}])] if stages else []
        method = "linear_probe" if stages else "full"
        callbacks = [lp.WarmupConstant(2), *more, lp.L2SP(ALPHA), keep]
        return fit(tmp_path, *callbacks, method=method, epochs=epochs, ckpt_path=ckpt_path)

    whole = state_of(run("whole", 4))
    rest = state_of(run("rest", 4, tmp_path / "whole" / "epoch=1.ckpt"))
    assert not differing(whole, rest)
    saved = torch.load(tmp_path / "whole" / "epoch=1.ckpt", weights_only=True)
    states = [s for key, s in saved["callbacks"].items() if "L2SP" in key]
    assert states
    assert not any(isinstance(v, torch.Tensor) for s in states for v in s["start"].values())


def test_stages_are_pulled_to_the_pretrained_values(tmp_path: Path) -> None:
    def run(*callbacks):
        stages = lp.BackboneFreeze(unfreeze=[{"epoch": 1, "layers": "last:1"}])
        return state_of(fit(tmp_path, stages, *callbacks, method="linear_probe"))

    before, free, held = state_of(Classifier()), run(), run(lp.L2SP(50.0))
    name = "net.blocks.1.mlp.fc1.weight"
    assert 0 < (held[name] - before[name]).norm() < 0.8 * (free[name] - before[name]).norm()
    assert torch.equal(held["net.blocks.0.mlp.fc1.weight"], before["net.blocks.0.mlp.fc1.weight"])


def test_beside_an_average(tmp_path: Path) -> None:
    found = fit(tmp_path, lp.L2SP(ALPHA), EMAWeightAveraging(decay=0.5))
    assert differing(state_of(found), state_of(Classifier()))


def test_another_starting_point_is_refused(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, filename="l2sp")
    fit(tmp_path, lp.L2SP(ALPHA), keep)
    other = Grouped()
    with torch.no_grad():
        other.net.blocks[0].mlp.fc1.weight.add_(1)
    with pytest.raises(lp.CheckpointError, match="starting point of the first run, got another"):
        fit(tmp_path, lp.L2SP(ALPHA), module=other, epochs=4, ckpt_path=tmp_path / "l2sp.ckpt")


@pytest.mark.parametrize("strength", [-1, float("inf"), True, "a"])
def test_impossible_strengths_are_refused(strength) -> None:
    with pytest.raises(lp.MethodError, match="expected strength to be a number from 0, got"):
        lp.L2SP(strength)


def test_a_method_that_trains_nothing_in_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(lp.MethodError, match=r"trained in place, got none with 'lora'"):
        fit(tmp_path, lp.L2SP(ALPHA), method="lora")
