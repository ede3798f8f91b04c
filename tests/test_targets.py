"""What a selection means on backbones whose structure is written down here by hand."""

from __future__ import annotations

import pytest
from torch import nn

import lightning_peft as lp
from lightning_peft.anatomy import anatomy
from lightning_peft.anatomy.bypass import bypassed
from lightning_peft.targets import layer_indices, resolve
from tests.zoo import HEADS, LIBRARY, ZOO, build

BLOCKS = {
    "vit": ("blocks.0", "blocks.1"),
    "deit_distilled": ("blocks.0", "blocks.1"),
    "swin": tuple(f"layers.{stage}.blocks.{block}" for stage in (0, 1) for block in (0, 1)),
    "convnext": ("stages.0.blocks.0", "stages.1.blocks.0", "stages.1.blocks.1")
    + ("stages.2.blocks.0", "stages.3.blocks.0"),
    "resnet": ("layer1.0", "layer1.1", "layer2.0", "layer3.0", "layer4.0"),
    "mixer": ("blocks.0", "blocks.1"),
    "bert": ("bert.encoder.layer.0", "bert.encoder.layer.1"),
    "gpt2": ("transformer.h.0", "transformer.h.1"),
    "llama": ("model.layers.0", "model.layers.1"),
    "t5": ("encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1"),
    "tv_vit": ("encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1"),
    "mlp": (),
}
QKV = {
    "vit": ["attn.qkv"],
    "swin": ["attn.qkv"],
    "bert": ["attention.self.query", "attention.self.key", "attention.self.value"],
    "gpt2": ["attn.c_attn"],
    "llama": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
}
MLP = {
    "vit": ["mlp.fc1", "mlp.fc2"],
    "convnext": ["mlp.fc1", "mlp.fc2"],
    "bert": ["intermediate.dense", "output.dense"],
    "gpt2": ["mlp.c_fc", "mlp.c_proj"],
    "llama": ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
    "mixer": ["mlp_tokens.fc1", "mlp_tokens.fc2", "mlp_channels.fc1", "mlp_channels.fc2"],
}


def names(backbone: str, targets, **options) -> tuple[str, ...]:
    model = build(backbone)
    return resolve(anatomy(model), model, targets, **options)


@pytest.mark.parametrize("backbone", ZOO)
def test_the_head_and_the_family_of_every_backbone(backbone: str) -> None:
    found = anatomy(build(backbone))
    expected = () if backbone == "mlp" else HEADS[backbone]
    assert found.head == expected
    assert found.family == LIBRARY[backbone]
    for role, modules in found.roles.items():
        assert not set(modules) & set(expected), role


@pytest.mark.parametrize("backbone", BLOCKS)
def test_the_blocks_in_order_with_stages_flattened(backbone: str) -> None:
    assert anatomy(build(backbone)).blocks == BLOCKS[backbone]


@pytest.mark.parametrize(
    ("preset", "backbone", "ends"),
    [
        pytest.param(preset, backbone, ends, id=f"{preset}-{backbone}")
        for preset, table in (("qkv", QKV), ("mlp", MLP))
        for backbone, ends in table.items()
    ],
)
def test_presets_look_at_the_model(preset: str, backbone: str, ends: list[str]) -> None:
    expected = {f"{block}.{end}" for block in BLOCKS[backbone] for end in ends}
    assert set(names(backbone, preset)) == expected


def test_auto_is_all_linear_or_the_convolutions() -> None:
    assert names("vit", "auto") == names("vit", "all-linear")
    assert names("resnet", "auto") == names("resnet", "convs")
    grouped = {n for n, m in build("efficientnet").named_modules() if getattr(m, "groups", 1) > 1}
    assert grouped
    assert not grouped & set(names("efficientnet", "convs"))


@pytest.mark.parametrize(
    ("targets", "options", "expected"),
    [
        ("blocks.1.mlp.fc1", {}, ("blocks.1.mlp.fc1",)),
        ("attn.proj", {}, ("blocks.0.attn.proj", "blocks.1.attn.proj")),
        ("blocks.0.mlp.*", {}, ("blocks.0.mlp.fc1", "blocks.0.mlp.fc2")),
        (r"re:blocks\.\d\.mlp\.fc2", {}, ("blocks.0.mlp.fc2", "blocks.1.mlp.fc2")),
        (["fc1", "fc2"], {"layers": "last:1"}, ("blocks.1.mlp.fc1", "blocks.1.mlp.fc2")),
        ("mlp", {"exclude": "fc1", "layers": 0}, ("blocks.0.mlp.fc2",)),
        ("mlp", {"exclude": ["blocks.0", "fc2"]}, ("blocks.1.mlp.fc1",)),
        ("head", {}, ("head",)),
    ],
)
def test_the_language_of_targets(targets, options, expected) -> None:
    assert names("vit", targets, **options) == expected


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("last:2", (2, 3)),
        ("first:1", (0,)),
        ("1-2", (1, 2)),
        ("0,2-3", (0, 2, 3)),
        (-1, (3,)),
        ([0, -1], (0, 3)),
    ],
)
def test_layer_ranges(layers, expected) -> None:
    assert layer_indices(layers, 4) == expected


@pytest.mark.parametrize(
    ("targets", "options", "message"),
    [
        ("atn", {}, r"atn.*Did you mean|atn[\s\S]*attn"),
        ("qkvv", {}, r"qkv"),
        ("re:(", {}, r"re:\("),
        ("convs", {"layers": "last:1"}, r"Nothing of .* is in the layers \[1\]"),
        ("mlp", {"layers": "last:9"}, "9"),
        ("mlp", {"layers": "late"}, "late"),
        ("mlp", {"exclude": "mlp"}, "Nothing is left"),
        (["nope", "nada"], {}, r"nope[\s\S]*nada"),
        ([], {}, "is empty"),
    ],
)
def test_a_selection_that_does_not_fit_says_what_is_there(targets, options, message) -> None:
    with pytest.raises(lp.TargetError, match=message):
        names("vit", targets, **options)


def test_a_head_that_is_not_there() -> None:
    with pytest.raises(lp.TargetError, match="hed"):
        anatomy(build("vit"), head="hed")
    assert anatomy(build("vit"), head=False).head == ()


BYPASSED = {
    **dict.fromkeys(("beit", "eva", "swinv2"), {"qkv"}),
    "tv_swin": {"qkv", "proj"},  # its attention is one function that is given both weights
}


@pytest.mark.parametrize("backbone", ZOO)
def test_bypassed_modules_are_found_and_no_others(backbone: str) -> None:
    model = build(backbone)
    found = bypassed(model, anatomy(model).roles["all-linear"])
    assert {name.rpartition(".")[2] for name in found} == BYPASSED.get(backbone, set())


def test_an_out_projection_of_multihead_attention_is_bypassed() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert set(bypassed(layer, ["self_attn.out_proj", "linear1"])) == {"self_attn.out_proj"}
    with pytest.raises(lp.TargetError, match="no weight of its own to adapt"):
        lp.adapt(layer, lp.LoRA(rank=2, targets="self_attn.out_proj"))
