"""Initialisations that read data get them from the train dataloader: EVA, CorDA, LoRA-GA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import peft
import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_peft as lp
from tests.support.trainers import quiet_trainer

DATA = torch.randn(12, 5, 8, generator=torch.Generator().manual_seed(0))
TARGETS = ["0", "2"]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 8))


class Module(L.LightningModule):
    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.net = net()
        self.rate = rate
        self.steps = 0

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        self.steps += 1
        loss = (self.net(batch) - batch).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], self.rate)


def loader(size: int = 4) -> Any:
    return DataLoader(DATA, batch_size=size)


def config(kind: str) -> LoraConfig:
    more: dict[str, Any] = {
        "eva": {"eva_config": peft.EvaConfig(rho=1.0)},
        "corda": {"corda_config": peft.tuners.lora.config.CordaConfig(corda_method="kpm")},
        "lora_ga": {"lora_ga_config": peft.LoraGAConfig()},
    }[kind]
    return LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=kind, **more)  # type: ignore[arg-type]


def by_eva() -> Any:
    model = peft.get_peft_model(net(), config("eva"))
    peft.initialize_lora_eva_weights(
        model,
        loader(),
        forward_fn=lambda model, batch: model(batch),
        prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=None,
        show_progress_bar=False,
    )
    return model


def by_corda() -> Any:
    model, chosen = net(), config("corda")
    chosen.corda_config.verbose = False

    def run() -> None:
        for sample in loader(1):
            model(sample)

    preprocess_corda(model, chosen, run_model=run)
    return peft.get_peft_model(model, chosen)


def by_lora_ga() -> Any:
    model, chosen = net(), config("lora_ga")

    def run() -> None:
        for batch in loader():
            (model(batch) - batch).square().mean().backward()

    state = torch.get_rng_state()
    preprocess_loraga(model, chosen, run)
    torch.set_rng_state(state)
    return peft.get_peft_model(model, chosen)


OWN: dict[str, Callable[[], Any]] = {"eva": by_eva, "corda": by_corda, "lora_ga": by_lora_ga}


def fitted(kind: str, epochs: int, path: Any = None, rate: float = 0.1) -> Any:
    module = Module(rate)
    torch.manual_seed(1)
    trainer = quiet_trainer(lp.PEFT(config(kind)), max_epochs=epochs)
    trainer.fit(module, loader(), ckpt_path=path, weights_only=False)
    return module, trainer


@pytest.mark.filterwarnings("ignore:lora with eva initialization used with low_cpu_mem_usage=False")
@pytest.mark.filterwarnings("ignore:Full backward hook is firing when gradients are computed")
@pytest.mark.parametrize("kind", OWN)
def test_the_first_values_are_those_of_peft_and_a_run_resumes(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(1)
    theirs = OWN[kind]().base_model.model
    ours = fitted(kind, 1, rate=0.0)[0].net
    for place in TARGETS:
        mine, own, plain = (m.get_submodule(place) for m in (ours, theirs, net()))
        for side in ("lora_A", "lora_B"):
            a, b = (getattr(layer, side)["default"].weight for layer in (mine, own))
            # the signs of singular vectors are those of a random start
            torch.testing.assert_close(*((a.abs(), b.abs()) if kind == "lora_ga" else (a, b)))
        change = (
            mine.scaling["default"] * mine.lora_B["default"].weight @ mine.lora_A["default"].weight
        )
        torch.testing.assert_close(mine.base_layer.weight + change, plain.weight)

    whole, _ = fitted(kind, 2)
    half, trainer = fitted(kind, 1)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    assert half.steps > 3  # of an epoch of three batches
    resumed, _ = fitted(kind, 2, tmp_path / "half.ckpt")
    assert resumed.steps == 3
    for mine, other in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, other)
    loaded = lp.load_from_checkpoint(Module, tmp_path / "half.ckpt")
    assert torch.equal(loaded.net.eval()(DATA), half.net.eval()(DATA))


def test_what_has_no_data_is_refused(tmp_path: Path) -> None:
    for kind in OWN:
        with pytest.raises(lp.MethodError, match=r"lp.PEFT\(config\) does so with the train data"):
            lp.adapt(net(), config(kind))
    wide = LoraConfig(init_lora_weights="eva", target_modules=TARGETS, eva_config=peft.EvaConfig())
    with pytest.raises(lp.MethodError, match="expected eva_config with rho=1.0, .* got rho=2.0"):
        quiet_trainer(lp.PEFT(wide), max_epochs=1).fit(Module(), loader())
    manual = Module()
    manual.automatic_optimization = False
    with pytest.raises(lp.MethodError, match="expected automatic optimization, got manual"):
        quiet_trainer(lp.PEFT(config("lora_ga")), max_epochs=1).fit(manual, loader())
    before = quiet_trainer(max_epochs=1)
    before.fit(Module(), loader())
    before.save_checkpoint(tmp_path / "before.ckpt")
    with pytest.raises(lp.CheckpointError, match="whose first values come from data, got one from"):
        fitted("eva", 2, tmp_path / "before.ckpt")
