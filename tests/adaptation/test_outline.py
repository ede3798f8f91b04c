"""What an outline says, counted by hand; what looks new, by layers as torch and timm start them."""

import pytest
import timm
import torch
from torch import nn
from transformers import BertConfig, BertModel

import lightning_peft as lp
from lightning_peft.adaptation.newness import is_trained, looks_new
from lightning_peft.adaptation.outline import outline
from tests.support.zoo import build


@pytest.fixture(scope="module")
def pretrained() -> nn.Module:
    return timm.create_model("glyph_vit", pretrained=True)


class Beside(nn.Module):
    """A pretrained encoder and a new decoder."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder


def zeros() -> nn.Module:
    """An output layer that starts without an effect."""
    layer = nn.Linear(64, 64)
    nn.init.zeros_(layer.weight)
    return layer


def test_an_outline_accounts_for_every_parameter():
    model = build("bert")
    total = sum(p.numel() for p in model.parameters())
    found = outline(lp.adapt(model, "lora", rank=2, targets="qkv"))
    assert [(part.name, part.parameters) for part in found.head] == [("classifier", 32 * 3 + 3)]
    assert {part.name for part in found.frozen} == {"bert.embeddings", "bert.pooler"}
    assert (found.sites, found.blocks, found.adapted_blocks) == (6, 2, 2)
    assert found.adapter == 6 * 2 * (32 + 32)
    parts = sum(part.parameters for part in (*found.head, *found.frozen))
    assert parts + found.frozen_blocks == total
    first, second, third = found.lines()
    assert first == "adapted: 6 places in 2 of 2 blocks, 768 parameters"
    assert second == "trained in place: the head classifier (99), as transformers has it"
    assert third.startswith("frozen outside of the blocks: bert.embeddings (1,824), bert.pooler (")
    assert "also_train='bert.embeddings' would train" in third


def test_a_recurrent_layer_whose_matrices_are_adapted_is_not_frozen():
    model = nn.ModuleDict(
        {"rnn": nn.LSTM(4, 8), "embed": nn.Embedding(5, 4), "out": nn.Linear(8, 2)}
    )
    found = outline(lp.adapt(model, "lora", rank=2, head="out"))
    assert [part.name for part in found.frozen] == ["embed"]
    assert found.sites == 2


def test_what_is_trained_as_it_is_stands_by_its_largest_modules():
    model = build("vit")
    found = outline(lp.adapt(model, "bitfit", also_train=["norm", "cls_token"]))
    in_place = {part.name: part.parameters for part in found.in_place}
    assert in_place == {"cls_token": 32, "patch_embed.proj.bias": 32, "norm": 64}
    biases = sum(p.numel() for n, p in model.blocks.named_parameters() if n.endswith("bias"))
    assert found.in_place_blocks == biases


def test_a_plan_is_a_tree_and_says_what_adapting_says():
    model = build("resnet")
    plan = lp.plan(model, "lora", rank=2)
    assert plan.outline == outline(lp.adapt(model, "lora", rank=2))
    assert "── frozen outside of the blocks: bn1 (128)" in str(plan)
    assert plan.to_dict()["outline"]["head"][0]["name"] == "fc"


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(64, 64),
        lambda: nn.Sequential(nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.Conv2d(32, 64, 1)),
        lambda: nn.Embedding(100, 64),
        lambda: timm.create_model("resnet10t"),
        lambda: timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=48),
        lambda: BertModel(
            BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, vocab_size=99)
        ),
        zeros,
    ],
    ids=["linear", "convs", "embedding", "resnet", "vit", "bert", "zeros"],
)
def test_a_fresh_initialisation_is_recognised(make):
    torch.manual_seed(0)
    module = make()
    assert looks_new(module)
    assert not is_trained([module])


def test_trained_weights_do_not_look_new(pretrained):
    assert is_trained(pretrained.blocks)
    assert not looks_new(pretrained.blocks)
    assert not looks_new(pretrained.patch_embed)
    layer = nn.Linear(64, 64)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        inputs = torch.randn(32, 64, generator=generator)
        optimizer.zero_grad()
        (layer(inputs) - inputs.flip(1)).square().mean().backward()
        optimizer.step()
    assert not looks_new(layer)


def test_what_cannot_be_read_does_not_look_new():
    with torch.device("meta"):
        assert not looks_new(nn.Linear(64, 64))
    assert not looks_new(nn.Linear(4, 4))  # too few values to tell
    assert not looks_new(nn.Identity())


def test_a_frozen_part_beside_a_pretrained_backbone_is_new(pretrained):
    decoder = nn.Sequential(nn.Conv2d(32, 16, 3), nn.Conv2d(16, 2, 1))
    model = Beside(pretrained, decoder)
    plan = lp.plan(model, "lora", rank=1)
    assert [part.name for part in plan.outline.head] == ["decoder"]
    assert not plan.outline.new
    plan = lp.plan(model, "lora", rank=1, head=False)
    assert [part.name for part in plan.outline.new] == ["decoder"]
    assert "WARNING: plan: frozen, but newly initialised" in str(plan)
    assert not lp.plan(Beside(build("vit"), decoder), "lora", rank=1, head=False).outline.new
