"""Optimizers that leave out the adapter: added on request, or named with the right advice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

import lightning_peft as lp
from tests.lightning.test_checkpoint_kinds import METHODS, Module, data
from tests.support.runs import differing, state_of, trainer


class Forgetful(Module):
    """An optimizer over the layers that its author knew, with a scheduler."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(
            [*self.net.head.parameters(), *self.extra.parameters()], lr=0.02, weight_decay=0.3
        )
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


def fit(tmp_path: Path, module: Any = None, *more: L.Callback, **settings: Any) -> Any:
    module = Forgetful() if module is None else module
    tr = trainer(tmp_path, lp.PEFT(METHODS["lora"], **settings), *more, max_epochs=2)
    tr.fit(module, data())
    return tr, module


@pytest.mark.parametrize(("add", "rate"), [(True, 0.02), (0.004, 0.004)])
def test_what_is_left_out_becomes_a_group_at_a_rate_that_is_stated(
    tmp_path: Path, add: Any, rate: float, said: Any
) -> None:
    torch.manual_seed(0)
    tr, module = fit(tmp_path, add_to_optimizer=add)
    first, added = tr.optimizers[0].param_groups
    adapter = {id(p) for n, p in module.named_parameters() if "lora_" in n}
    assert {id(p) for p in added["params"]} == adapter
    assert [first["lr"], added["lr"]] == pytest.approx([0.02 / 4, rate / 4])  # halved twice
    assert added["weight_decay"] == 0.3
    assert "left out 6 trained parameters of 'net'" in said()
    assert f"at a learning rate of {rate:.3g}" in said()
    assert all(p.abs().sum() > 0 for n, p in module.named_parameters() if "lora_B" in n)


def test_without_the_word_the_error_names_it_and_a_rate_is_checked(tmp_path: Path) -> None:
    with pytest.raises(lp.MethodError, match=r"left out .*lora_A.*add_to_optimizer=True.*own at"):
        fit(tmp_path)
    for wrong in (0, -1.0, "1e-3", float("inf")):
        with pytest.raises(lp.MethodError, match="expected add_to_optimizer to be True, False or"):
            lp.PEFT("lora", add_to_optimizer=wrong)


@pytest.mark.filterwarnings("ignore:.*configure_optimizers.* returned .None.*:UserWarning")
@pytest.mark.parametrize("add", [True, False])
def test_no_optimizer_is_refused(tmp_path: Path, add: bool) -> None:
    class Without(Module):
        def configure_optimizers(self) -> None:
            return None

    with pytest.raises(lp.MethodError, match="expected an optimizer for .* Without, so that noth"):
        fit(tmp_path, Without(), add_to_optimizer=add)


def test_a_resumed_run_has_the_group_again(tmp_path: Path) -> None:
    def run(epochs: int, path: Any = None) -> dict[str, torch.Tensor]:
        L.seed_everything(0, verbose=False)
        module = Forgetful()
        keep = ModelCheckpoint(tmp_path / str(path is None), filename="{epoch}", save_top_k=-1)
        schedule = lp.WarmupCosine(0.2, total_steps=8, replace=True)
        peft = lp.PEFT(METHODS["lora"], add_to_optimizer=0.03)
        tr = trainer(tmp_path, peft, schedule, keep, max_epochs=epochs)
        tr.fit(module, data(), ckpt_path=path)
        return state_of(module)

    whole = run(2)
    assert differing(run(2, tmp_path / "True" / "epoch=0.ckpt"), whole) == set()


class Two(Module):
    """Manual optimization with two optimizers, of which one trains something of the backbone."""

    def __init__(self, heads: tuple[bool, bool]) -> None:
        super().__init__()
        self.heads = heads
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        extra = [[self.extra.weight], [self.extra.bias]]
        head = [[self.net.head.weight], [self.net.head.bias]]
        if self.heads == (False, True):
            head = [[], [*head[0], *head[1]]]
        return [torch.optim.SGD([*a, *b], lr=0.1) for a, b in zip(extra, head, strict=True)]

    def training_step(self, batch: list[torch.Tensor], index: int) -> None:
        loss = nn.functional.cross_entropy(self.extra(self.net(batch[0])), batch[1])
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()


def test_of_several_optimizers_it_is_the_one_that_trains_something_of_the_backbone(
    tmp_path: Path,
) -> None:
    tr, module = fit(tmp_path, Two((False, True)), add_to_optimizer=True)
    assert [len(o.param_groups) for o in tr.optimizers] == [1, 2]
    assert all(p.abs().sum() > 0 for n, p in module.named_parameters() if "lora_B" in n)
    with pytest.raises(
        lp.MethodError, match="expected one optimizer that trains something of 'net'"
    ):
        fit(tmp_path, Two((True, True)), add_to_optimizer=True)
