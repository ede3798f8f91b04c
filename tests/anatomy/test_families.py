"""Head, blocks and roles of each family, written down by hand from its structure."""

from __future__ import annotations

import pytest

from tests.support.zoo import HEADS, LIBRARY, ZOO

# The prefix of every block, and what is in a block for each role (all blocks alike).
VIT = {
    "qkv": ["attn.qkv"],
    "attention-out": ["attn.proj"],
    "mlp-in": ["mlp.fc1"],
    "mlp-out": ["mlp.fc2"],
}
HF_VIT_ATTENTION = ["attention.q_proj", "attention.k_proj", "attention.v_proj"]
TWO = ["blocks.0", "blocks.1"]
SWIN_BLOCKS = [f"layers.{stage}.blocks.{block}" for stage in (0, 1) for block in (0, 1)]

CASES: dict[str, tuple[list[str], dict[str, list[str]]]] = {
    **dict.fromkeys(("vit", "vit_reg_avg", "deit_distilled", "beit", "eva"), (TWO, VIT)),
    **dict.fromkeys(("swin", "swinv2"), (SWIN_BLOCKS, VIT)),
    "convnext": (
        [
            "stages.0.blocks.0",
            "stages.1.blocks.0",
            "stages.1.blocks.1",
            "stages.2.blocks.0",
            "stages.3.blocks.0",
        ],
        {"mlp-in": ["mlp.fc1"], "mlp-out": ["mlp.fc2"]},
    ),
    "resnet": (["layer1.0", "layer1.1", "layer2.0", "layer3.0", "layer4.0"], {}),
    "mixer": (
        TWO,
        {
            "mlp-in": ["mlp_tokens.fc1", "mlp_channels.fc1"],
            "mlp-out": ["mlp_tokens.fc2", "mlp_channels.fc2"],
        },
    ),
    "bert": (
        [f"bert.encoder.layer.{i}" for i in (0, 1)],
        {
            "qkv": ["attention.self.query", "attention.self.key", "attention.self.value"],
            "attention-out": ["attention.output.dense"],
            "mlp-in": ["intermediate.dense"],
            "mlp-out": ["output.dense"],
        },
    ),
    "gpt2": (
        [f"transformer.h.{i}" for i in (0, 1)],
        {
            "qkv": ["attn.c_attn"],
            "attention-out": ["attn.c_proj"],
            "mlp-in": ["mlp.c_fc"],
            "mlp-out": ["mlp.c_proj"],
        },
    ),
    "llama": (
        [f"model.layers.{i}" for i in (0, 1)],
        {
            "qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            "attention-out": ["self_attn.o_proj"],
            "mlp-in": ["mlp.gate_proj", "mlp.up_proj"],
            "mlp-out": ["mlp.down_proj"],
        },
    ),
    "tv_resnet": (["layer1.0", "layer2.0", "layer3.0", "layer4.0"], {}),
    "tv_swin": (
        ["features.1.0", "features.1.1", "features.3.0", "features.3.1"],
        {
            "qkv": ["attn.qkv"],
            "attention-out": ["attn.proj"],
            "mlp-in": ["mlp.0"],
            "mlp-out": ["mlp.3"],
        },
    ),
    "mlp": ([], {}),
}
ROLES_IN_BLOCKS = ("qkv", "attention-out", "mlp-in", "mlp-out")


@pytest.mark.parametrize("name", ZOO)
def test_head_and_family(name, anatomy_of):
    found = anatomy_of(name)
    assert found.family == LIBRARY[name]
    # `mlp` is a bare Sequential: its last layer has no name that would make it a head.
    assert found.head == (() if name == "mlp" else HEADS[name])


@pytest.mark.parametrize("name", CASES)
def test_blocks_and_roles(name, anatomy_of):
    blocks, parts = CASES[name]
    found = anatomy_of(name)
    assert list(found.blocks) == blocks
    assert found.roles["blocks"] == found.blocks
    for role in ROLES_IN_BLOCKS:
        expected = {f"{block}.{part}" for block in blocks for part in parts.get(role, [])}
        assert set(found.roles[role]) == expected, role
    assert set(found.roles["attention"]) == {*found.roles["qkv"], *found.roles["attention-out"]}
    assert set(found.roles["mlp"]) == {*found.roles["mlp-in"], *found.roles["mlp-out"]}


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("swinv2", "mlp")])
def test_all_linear_is_the_attention_and_the_mlp_of_these_families(name, anatomy_of):
    roles = anatomy_of(name).roles
    assert set(roles["all-linear"]) == {*roles["attention"], *roles["mlp"]}


def test_swinv2_bias_mlp_is_linear_but_neither_attention_nor_mlp(anatomy_of):
    roles = anatomy_of("swinv2").roles
    rest = set(roles["all-linear"]) - {*roles["attention"], *roles["mlp"]}
    assert rest == {f"{block}.attn.cpb_mlp.{i}" for block in SWIN_BLOCKS for i in (0, 2)}


def test_mlp_takes_all_linear_layers_of_a_model_without_blocks(anatomy_of):
    assert anatomy_of("mlp").roles["all-linear"] == ("0", "2", "4")


def test_hf_vit(anatomy_of):
    found = anatomy_of("hf_vit")
    assert len(found.blocks) == 2
    assert [len(found.roles[role]) for role in ROLES_IN_BLOCKS] == [6, 2, 2, 2]
    assert len(found.roles["all-linear"]) == 12


def test_t5_cross_attention_is_attention_and_its_lm_head_is_no_head(anatomy_of):
    found = anatomy_of("t5")
    stacks = [("encoder", 0), ("encoder", 1), ("decoder", 0), ("decoder", 1)]
    assert list(found.blocks) == [f"{stack}.block.{i}" for stack, i in stacks]
    cross = [f"decoder.block.{i}.layer.1.EncDecAttention" for i in (0, 1)]
    own = [f"{stack}.block.{i}.layer.0.SelfAttention" for stack, i in stacks]
    assert set(found.roles["qkv"]) == {f"{a}.{part}" for a in (*own, *cross) for part in "qkv"}
    assert set(found.roles["attention-out"]) == {f"{a}.o" for a in (*own, *cross)}
    layer = {"encoder": 1, "decoder": 2}
    dense = [f"{stack}.block.{i}.layer.{layer[stack]}.DenseReluDense" for stack, i in stacks]
    assert set(found.roles["mlp-in"]) == {f"{d}.wi" for d in dense}
    assert set(found.roles["mlp-out"]) == {f"{d}.wo" for d in dense}
    assert "lm_head" not in found.roles["all-linear"]


def test_multihead_attention_is_its_own_query_key_and_value(anatomy_of):
    found = anatomy_of("tv_vit")
    layers = [f"encoder.layers.encoder_layer_{i}" for i in (0, 1)]
    assert list(found.blocks) == layers
    attention = tuple(f"{layer}.self_attention" for layer in layers)
    out = tuple(f"{name}.out_proj" for name in attention)
    assert found.roles["qkv"] == attention
    assert found.roles["attention-out"] == out
    assert {*found.roles["attention"]} == {*attention, *out}
    mlp = {f"{layer}.mlp.{i}" for layer in layers for i in (0, 3)}
    assert {*found.roles["all-linear"]} == {*attention, *out, *mlp}


def test_efficientnet_blocks_and_convolutions_of_one_group(anatomy_of, model_of):
    found = anatomy_of("efficientnet")
    model = model_of("efficientnet")
    assert found.blocks == ("blocks.1.0", "blocks.2.0", "blocks.3.0", "blocks.4.0")
    assert found.roles["all-linear"] == ()
    depthwise = [n for n, m in model.named_modules() if getattr(m, "groups", 1) > 1]
    assert depthwise
    assert not {*depthwise} & {*found.roles["convs"]}
    assert {"conv_stem", "conv_head", "blocks.3.0.se.conv_reduce"} <= {*found.roles["convs"]}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit", ["blocks.0.norm1", "blocks.0.norm2", "blocks.1.norm1", "blocks.1.norm2", "norm"]),
        (
            "llama",
            [
                *(
                    f"model.layers.{i}.{which}_layernorm"
                    for i in (0, 1)
                    for which in ("input", "post_attention")
                ),
                "model.norm",
            ],
        ),
    ],
)  # fmt: skip
def test_norms(name, expected, anatomy_of):
    assert list(anatomy_of(name).roles["norms"]) == expected


def test_the_norm_beside_a_head_is_a_norm(anatomy_of):
    found = anatomy_of("convnext")
    assert found.head == ("head.fc",)
    assert "head.norm" in found.roles["norms"]


@pytest.mark.parametrize("name", ["vit", "swin", "resnet", "bert", "t5", "tv_swin"])
def test_every_name_is_a_module_in_model_order(name, anatomy_of, model_of):
    order = [module for module, _ in model_of(name).named_modules()]
    found = anatomy_of(name)
    for names in (found.head, found.blocks, *found.roles.values()):
        places = [order.index(module) for module in names]
        assert places == sorted(set(places))


@pytest.mark.parametrize("name", ["vit", "deit_distilled", "swin", "convnext", "resnet", "bert"])
def test_nothing_of_the_head_plays_a_role(name, anatomy_of):
    found = anatomy_of(name)
    for names in found.roles.values():
        assert not {*names} & {*found.head}
