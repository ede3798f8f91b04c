"""What people who fine-tune with Lightning and peft are hit by, and no other test is about.

`docs/traps.md` lists all of it, each with its test.
"""

from __future__ import annotations

import json
from pathlib import Path

import lightning as L
import peft
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.utils.checkpoint import checkpoint

import lightning_peft as lp
from tests.support.runs import Classifier, equal, images, state_of, trainer
from tests.support.zoo import build


class Mine(lp.PEFTMixin, Classifier):
    peft = lp.LoRA(rank=2)


def test_with_the_mixin_the_class_itself_loads_a_checkpoint(tmp_path: Path) -> None:
    module = Mine()
    tr = trainer(tmp_path)
    tr.fit(module, images(), images())
    tr.save_checkpoint(tmp_path / "slim.ckpt", weights_only=True)
    content = torch.load(tmp_path / "slim.ckpt", weights_only=True)["state_dict"]
    assert not any("base_layer" in name for name in content)
    loaded = Mine.load_from_checkpoint(tmp_path / "slim.ckpt")
    assert equal(state_of(loaded), state_of(module))


@pytest.mark.parametrize(
    "setting",
    [
        "lora",
        {"name": "lora", "rank": 2},
        {"method": "lora", "batchnorm": "train"},
        ["ssf", "bitfit"],
    ],
    ids=["name", "mapping", "with settings", "several"],
)
def test_a_mixin_says_its_method_in_any_of_the_ways_of_the_callback(setting, tmp_path) -> None:
    class Said(lp.PEFTMixin, Classifier):
        peft = setting

    module = Said()
    trainer(tmp_path).fit(module, images(), images())
    assert lp.find_adaptation(module.net) is not None


def test_what_was_trained_and_frozen_again_is_still_saved(tmp_path: Path) -> None:
    model = build("vit")
    adaptation = lp.adapt(model, lp.LoRA(rank=2))
    before = set(adaptation.state_dict())
    model.requires_grad_(False)
    assert set(adaptation.state_dict()) == before
    adaptation.save(tmp_path)
    assert lp.load_adapter(build("vit"), tmp_path) is not None


def test_a_parameter_that_equals_another_is_not_taken_for_it(tmp_path: Path) -> None:
    module = Classifier()

    def all_but_one() -> torch.optim.Optimizer:
        trained = [p for p in module.net.parameters() if p.requires_grad]
        twins = [p for p in trained if p.shape == trained[1].shape]
        assert len(twins) > 1  # the B of every update is zero at first
        assert torch.equal(twins[0], twins[1])
        return torch.optim.SGD([p for p in trained if p is not twins[0]], lr=0.1)

    module.configure_optimizers = all_but_one
    with pytest.raises(lp.MethodError, match=r"left out blocks\.0\.attn\.qkv\.lora_B\.default"):
        trainer(tmp_path, lp.PEFT("lora", rank=2)).fit(module, images(), images())


class Reentrant(Classifier):
    def training_step(self, batch, batch_idx):
        hidden = self.net.patch_embed(batch[0]).flatten(1, 1)
        hidden = self.net.norm_pre(self.net.patch_drop(self.net._pos_embed(hidden)))
        for block in self.net.blocks:
            hidden = checkpoint(block, hidden, use_reentrant=True)
        logits = self.net.forward_head(self.net.norm(hidden))
        return nn.functional.cross_entropy(logits, batch[1])


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpointing_of_frozen_inputs_is_found_and_named(tmp_path: Path) -> None:
    with pytest.raises(lp.MethodError, match=r"have no gradient.*use_reentrant=False"):
        trainer(tmp_path, lp.PEFT("lora", rank=2)).fit(Reentrant(), images(), images())


def test_a_task_type_does_not_break_a_vision_model() -> None:
    config = peft.LoraConfig(r=2, target_modules=["qkv"], task_type="SEQ_CLS")
    model = build("vit")
    expected = model(torch.ones(1, 3, 32, 32))
    adaptation = lp.adapt(model, config)
    assert torch.equal(model(torch.ones(1, 3, 32, 32)), expected)
    assert {site.module for site in adaptation.sites} == {"blocks.0.attn.qkv", "blocks.1.attn.qkv"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "method", [lp.LoRA(rank=2), lp.HF("loha", r=2), lp.SSF(), lp.AdaptFormer()]
)
def test_the_adapter_of_a_half_precision_backbone_is_float32(dtype, method) -> None:
    model = build("vit").to(dtype)
    adaptation = lp.adapt(model, method)
    kinds = {model.get_parameter(name).dtype for name in adaptation.adapter_names()}
    assert kinds == {torch.float32}


def test_a_list_of_hydra_is_plain_json_in_checkpoint_and_file(tmp_path: Path) -> None:
    config = OmegaConf.create({"targets": ["qkv", "fc1"], "layers": [0]})
    method = lp.LoRA(rank=2, targets=config.targets, layers=config.layers)
    module = Classifier()
    tr = trainer(tmp_path, lp.PEFT(method))
    tr.fit(module, images(), images())
    tr.save_checkpoint(tmp_path / "last.ckpt")
    recorded = torch.load(tmp_path / "last.ckpt", weights_only=True)["lightning_peft"]
    assert json.loads(json.dumps(recorded["adaptations"])) == recorded["adaptations"]
    lp.find_adaptation(module.net).save(tmp_path / "adapter")
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert sorted(written["target_modules"]) == ["blocks.0.attn.qkv", "blocks.0.mlp.fc1"]


class TakesANetwork(L.LightningModule):
    """A network as a hyperparameter, which Lightning pickles into every checkpoint."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["net"])
        self.net = net

    training_step = Classifier.training_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_module_that_is_given_its_network_loads_with_it(tmp_path: Path) -> None:
    module = TakesANetwork(build("vit"))
    tr = trainer(tmp_path, lp.PEFT("lora", rank=2))
    tr.fit(module, images())
    tr.save_checkpoint(tmp_path / "last.ckpt")
    loaded = lp.load_from_checkpoint(TakesANetwork, tmp_path / "last.ckpt", net=build("vit"))
    assert equal(state_of(loaded), state_of(module))
