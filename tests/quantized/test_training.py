"""QLoRA through Lightning: stopped, resumed, saved, and loaded by ``peft`` alone."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import peft
import pytest
import torch
from lightning.pytorch.plugins import BitsandbytesPrecision
from torch import nn
from torch.utils.data import DataLoader

import lightning_peft as lp
from tests.quantized.models import bnb, dense, llama, tokens

SAMPLES = tokens(16)


class Language(L.LightningModule):
    def __init__(self, bits: int = 4, stop_at: int | None = None, seed: int = 0) -> None:
        super().__init__()
        self.model = llama(bits, seed) if bits else dense(llama())
        self.stop_at = stop_at

    def training_step(self, batch, index):
        if self.global_step == self.stop_at:
            raise RuntimeError("stopped")
        return self.model(input_ids=batch, labels=batch).loss

    def validation_step(self, batch, index):
        self.model(input_ids=batch, labels=batch)

    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)


def fit(module, folder, steps=8, resumed=None, **settings) -> Any:
    callback = lp.PEFT("lora", rank=2, targets=["q_proj", "v_proj"], **settings)
    saves = L.pytorch.callbacks.ModelCheckpoint(
        folder, filename="one", save_on_train_epoch_end=True, enable_version_counter=False
    )
    trainer = L.Trainer(
        max_steps=steps, callbacks=[callback, saves], accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=1,
    )  # fmt: skip
    data = DataLoader(SAMPLES, batch_size=4)
    trainer.fit(module, data, DataLoader(SAMPLES[:4], batch_size=4), ckpt_path=resumed)
    return module


def trained(module: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[int, dict[str, torch.Tensor]]:
    """What is trained in a run that was not stopped: two epochs of four steps."""
    folder = tmp_path_factory.mktemp("whole")
    return {bits: trained(fit(Language(bits), folder)) for bits in (4, 8)}


@pytest.mark.parametrize("bits", [4, 8])
def test_qlora_from_start_to_peft_alone(bits: int, whole, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stopped"):
        fit(Language(bits, stop_at=5), tmp_path / "killed")
    last = tmp_path / "killed" / "one.ckpt"
    held = torch.load(last, weights_only=True)["state_dict"]
    assert held
    assert all("lora" in name for name in held)
    module = fit(Language(bits), tmp_path / "resumed", resumed=last)
    assert trained(module).keys() == whole[bits].keys()
    for name, value in trained(module).items():
        assert torch.equal(value, whole[bits][name]), name

    lp.find_adaptation(module.model).save(tmp_path / "adapter")
    alone = llama(bits)
    alone.is_loaded_in_8bit, alone.is_loaded_in_4bit = bits == 8, bits == 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = peft.PeftModel.from_pretrained(alone, tmp_path / "adapter").eval()
    ours, given = module.model.eval(), {"input_ids": tokens()[:, :4]}
    given |= {"attention_mask": torch.ones_like(given["input_ids"])}
    words = [m.generate(**given, max_new_tokens=6, do_sample=False) for m in (ours, loaded)]
    assert torch.equal(*words)
    assert not torch.equal(words[0], llama(bits).generate(**given, max_new_tokens=6))


@pytest.mark.parametrize("kind", [pytest.param("full", marks=pytest.mark.slow), "merged"])
def test_other_forms_of_checkpoints_resume_as_well(kind: Any, whole, tmp_path: Path) -> None:
    fit(Language(), tmp_path / "first", steps=4, checkpoints=kind)
    last = tmp_path / "first" / "one.ckpt"
    again = fit(Language(), tmp_path / "second", resumed=last, checkpoints=kind)
    for name, value in trained(again).items():
        assert torch.equal(value, whole[4][name]), name
    if kind == "merged":  # the module's own names, in numbers
        state = torch.load(last, weights_only=True)["state_dict"]
        Language(0).load_state_dict(state)


def test_a_checkpoint_of_another_base_is_refused(tmp_path: Path) -> None:
    fit(Language(), tmp_path, steps=4)
    last = tmp_path / "one.ckpt"
    with pytest.raises(lp.BackboneMismatchError, match="values of the frozen parameters"):
        fit(Language(seed=1), tmp_path / "b", resumed=last)
    for bits, now in ((8, "int8, outliers above 6"), (0, "none")):
        with pytest.raises(lp.BackboneMismatchError, match=f"14 x bitsandbytes nf4.*got .*{now}"):
            fit(Language(bits), tmp_path / "b", resumed=last)


def test_an_adapter_for_another_quantisation_is_told(tmp_path: Path) -> None:
    lp.adapt(llama(), "lora", rank=2).save(tmp_path / "a")
    with pytest.raises(lp.BackboneMismatchError, match=r"quantisation \(14 x .* nf4.*got none\)"):
        lp.load_adapter(dense(llama()), tmp_path / "a")
    with pytest.warns(UserWarning, match="quantisation"):
        lp.load_adapter(dense(llama()), tmp_path / "a", strict_backbone=False)
    scales = llama()
    scales.model.layers[0].mlp.up_proj.weight.quant_state.offset.add_(1e-3)
    with pytest.raises(lp.BackboneMismatchError, match="scales of the quantised weights"):
        lp.load_adapter(scales, tmp_path / "a")


class Late(Language):
    """A module whose layers are made in ``configure_model``, where Lightning swaps their class."""

    def __init__(self) -> None:
        super().__init__(0)
        self.model = None

    def configure_model(self) -> None:
        if self.model is None:
            self.model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))

    def training_step(self, batch, index):
        return self.model(nn.functional.one_hot(batch, 64).float()).square().mean()


@pytest.mark.parametrize("late", [False, True])
def test_lightnings_own_quantisation_comes_before_the_adapter(late: bool, tmp_path: Path) -> None:
    ignored = None if late else {"model.lm_head"}
    precision = BitsandbytesPrecision("nf4", torch.float32, ignore_modules=ignored)
    module = Late() if late else Language(0)
    callback = lp.PEFT("lora", rank=2, head=False, **({"backbone": "model"} if late else {}))
    trainer = L.Trainer(
        max_steps=2, callbacks=[callback], accelerator="cpu", logger=False, limit_val_batches=0,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.strategy.precision_plugin = precision  # which Lightning refuses beside a CPU
    trainer.fit(module, DataLoader(SAMPLES, batch_size=4))
    layers = [m for m in module.modules() if isinstance(m, peft.tuners.lora.LoraLayer)]
    assert layers
    for layer in layers:
        assert isinstance(layer.base_layer, bnb.nn.Linear4bit)
        assert layer.base_layer.weight.dtype == torch.uint8
        assert type(layer.lora_A["default"]) is nn.Linear
        assert layer.lora_A["default"].weight.dtype == torch.float32
    assert any(layer.lora_B["default"].weight.any() for layer in layers)
