"""The first lines of a run, from the callback, the mixin and BackboneFreeze alike."""

from __future__ import annotations

import logging

import lightning as L
import pytest
import timm
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_peft as lp
from tests.support.trainers import quiet_trainer


class Net(nn.Module):
    """A pretrained encoder and a decoder that nobody has trained, in a plain module."""

    def __init__(self, pretrained: bool) -> None:
        super().__init__()
        self.encoder = timm.create_model("glyph_vit", pretrained=pretrained, num_classes=0)
        self.decoder = nn.Sequential(nn.Linear(self.encoder.num_features, 16), nn.Linear(16, 2))

    def forward(self, images: Tensor) -> Tensor:
        return self.decoder(self.encoder(images))


class Module(L.LightningModule):
    def __init__(self, pretrained: bool = True) -> None:
        super().__init__()
        self.net = Net(pretrained)
        self.scale = nn.Linear(1, 1)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return self.scale(self.net(batch[0]).square().mean()[None]).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.01)


class Mixed(lp.PEFTMixin, Module):
    peft = {"method": lp.LoRA(rank=1), "head": False}  # noqa: RUF012


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO)

    def fit(module: L.LightningModule, *callbacks: L.Callback) -> list[str]:
        caplog.clear()
        size = module.net.encoder.pretrained_cfg["input_size"]
        loader = DataLoader(TensorDataset(torch.rand(2, *size)), batch_size=2)
        keeps = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
        settings = {"max_steps": 1, "max_epochs": 1, "enable_checkpointing": keeps}
        quiet_trainer(*callbacks, **settings).fit(module, loader)
        message = next(
            r.getMessage() for r in caplog.records if r.getMessage().startswith(("PEFT:", "Backb"))
        )
        return message.split("\n  ")

    return fit


def test_the_first_lines_say_what_is_adapted_trained_and_frozen(said):
    module = Module()
    features = module.net.encoder.num_features
    sizes = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in module.net.encoder.named_children()
    }
    first, adapted, trained, frozen, outside = said(module, lp.PEFT("lora", rank=1))
    assert first.startswith("PEFT: lora on 'net' (")
    blocks = len(module.net.encoder.blocks)
    assert adapted.startswith(f"adapted: {4 * blocks} places in {blocks} of {blocks} blocks, ")
    decoder = features * 16 + 16 + 34
    assert trained == (
        f"trained in place: the head decoder ({decoder}), what is beside the pretrained model"
    ).replace(f"({decoder})", f"({decoder:,})")
    assert frozen.startswith("frozen outside of the blocks: ")
    assert f"encoder.patch_embed ({sizes['patch_embed']:,})" in frozen
    assert outside == "trained outside of the backbone, as the module has it: scale (2)"


def test_a_frozen_part_that_looks_new_is_a_warning_that_names_the_way_out(said):
    expected = r"PEFT: frozen, but newly initialised.*decoder \(.*also_train='decoder' or head='dec"
    with pytest.warns(UserWarning, match=expected):
        said(Module(), lp.PEFT("lora", rank=1, head=False))
    with pytest.warns(UserWarning, match=expected):
        lines = said(Mixed())
    assert any("frozen outside of the blocks: " in line for line in lines)
    expected = r"BackboneFreeze: frozen, but newly.*decoder \(.*Pass head='decoder' to train it"
    with pytest.warns(UserWarning, match=expected):
        said(Module(), lp.BackboneFreeze("net", head=False))


def test_a_new_head_with_large_weights_is_told(caplog):
    class Classifier(Module):
        def __init__(self):
            super().__init__()
            self.net = timm.create_model("test_efficientnet", num_classes=2)

        def training_step(self, batch, batch_idx):
            return self.net(batch[0]).square().mean()

    caplog.set_level(logging.INFO)
    loader = DataLoader(TensorDataset(torch.rand(2, 3, 160, 160)), batch_size=2)
    for head, told in ((None, True), ("as torch draws it", False)):
        module = Classifier()
        if head:
            module.net.classifier.reset_parameters()
        caplog.clear()
        quiet_trainer(lp.PEFT("lora", rank=1), max_steps=1).fit(module, loader)
        assert ("not certain: 'classifier' starts with weights" in caplog.text) is told


@pytest.mark.parametrize("weights", ["random", "pretrained", "full"])
def test_random_weights_that_no_checkpoint_holds_are_said(said, tmp_path, weights) -> None:
    module = Module(pretrained=weights == "pretrained")
    kinds = {"checkpoints": "full"} if weights == "full" else {}
    keep = ModelCheckpoint(tmp_path, save_top_k=0)
    lines = said(module, lp.PEFT(lp.LoRA(rank=1), **kinds), keep)
    found = any(line.startswith("not in the checkpoints: the frozen weights") for line in lines)
    assert found == (weights == "random")


def test_backbone_freeze_reads_the_same_anatomy(said):
    module = Module()
    first, trained, outside, frozen = said(module, lp.BackboneFreeze())
    encoder = sum(p.numel() for p in module.net.encoder.parameters())
    whole = sum(p.numel() for p in module.net.parameters())
    assert first == f"BackboneFreeze: {encoder:,} of the {whole:,} parameters of 'net' frozen"
    assert trained.endswith("what is beside the pretrained model")
    assert outside.endswith("scale (2)")
    assert frozen.startswith("frozen outside of the blocks: ")
    assert all(p.requires_grad for p in module.net.decoder.parameters())
    assert not any(p.requires_grad for p in module.net.encoder.parameters())
