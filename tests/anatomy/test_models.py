"""Models that are wrapped, compiled, without a head, large, or nobody's family."""

from __future__ import annotations

import copy
import pickle
import re

import pytest
import timm
import torch
from torch import nn

from lightning_peft.anatomy import anatomy, layer_of, plain_name
from lightning_peft.errors import TargetError
from tests.support.zoo import build

TINY = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2}


def on_meta(name: str, **options) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, pretrained=False, **options)


class Net(nn.Module):
    def __init__(self, encoder: nn.Module, fc: nn.Module | None = None):
        super().__init__()
        self.encoder = encoder
        if fc is not None:
            self.fc = fc


class Plain(nn.Module):
    def __init__(self, **children: nn.Module):
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


def headless() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY)


def test_a_timm_model_without_classes_has_no_head():
    assert anatomy(headless()).head == ()


@pytest.mark.parametrize(
    "name",
    [
        "vit_large_patch16_224",
        "swin_tiny_patch4_window7_224",
        "convnext_tiny",
        "resnet50",
        "xcit_nano_12_p16_224",
        "regnety_032",
        "densenet121",
    ],
)
def test_blocks_agree_with_the_groups_that_timm_itself_makes(name):
    model = on_meta(name)
    groups = model.group_matcher(coarse=False)["blocks"]
    groups = [(groups, None)] if isinstance(groups, str) else groups
    # A pattern with a fixed group number (None is "by the digits") names what is no block.
    patterns = [pattern for pattern, group in groups if group is None]
    expected = {
        match[0].rstrip(".")
        for parameter, _ in model.named_parameters()
        for pattern in patterns
        if (match := re.match(pattern, parameter))
    }
    extra = {b for b in anatomy(model).blocks if b.startswith("cls_attn_blocks")}  # XCiT's last two
    assert set(anatomy(model).blocks) - extra == expected


def test_a_head_put_around_a_backbone():
    found = anatomy(Net(headless(), nn.Linear(32, 3)))
    assert (found.family, found.architecture) == ("module", "vit_tiny_patch16_224")
    assert found.head == ("fc",)
    assert found.blocks == ("encoder.blocks.0", "encoder.blocks.1")


def test_a_bare_wrapper_has_the_head_of_its_backbone():
    assert anatomy(Net(build("vit"))).head == ("encoder.head",)


def test_all_that_is_new_around_a_backbone_is_head():
    model = nn.Sequential(headless(), nn.LayerNorm(32), nn.Linear(32, 3))
    assert anatomy(model).head == ("1", "2")
    assert len(anatomy(model).blocks) == 2


@pytest.mark.parametrize("name", ["fc", "head", "heads", "classifier", "classification_head"])
def test_usual_names_of_heads_in_a_plain_module(name):
    model = Plain(body=nn.Linear(4, 8), **{name: nn.Linear(8, 2)})
    found = anatomy(model)
    assert found.head == (name,)
    assert found.roles["all-linear"] == ("body",)


def test_a_name_of_a_head_that_is_the_whole_model_is_none():
    assert anatomy(Plain(classifier=nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)))).head == ()


def test_a_replaced_torchvision_classifier_is_new_as_a_whole():
    model = build("tv_resnet")
    model.fc = nn.Sequential(nn.Linear(512, 16), nn.ReLU(), nn.Linear(16, 3))
    assert anatomy(model).head == ("fc",)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("convnext_tiny", "classifier.2"),
        ("efficientnet_b0", "classifier.1"),
        ("mobilenet_v3_small", "classifier.3"),
        ("vgg11", "classifier.6"),
    ],
)
def test_only_the_last_layer_of_a_torchvision_classifier_is_new(name, head):
    import torchvision

    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    assert anatomy(model).head == (head,)


@pytest.mark.parametrize(
    ("kind", "config", "head"),
    [
        (
            "DistilBertForSequenceClassification",
            "DistilBertConfig",
            ("pre_classifier", "classifier"),
        ),
        ("DistilBertForMaskedLM", "DistilBertConfig", ()),
        ("RobertaForSequenceClassification", "RobertaConfig", ("classifier",)),
        ("BertModel", "BertConfig", ()),
        ("GPT2LMHeadModel", "GPT2Config", ()),
        ("T5ForSequenceClassification", "T5Config", ("classification_head",)),
        ("T5ForQuestionAnswering", "T5Config", ("qa_outputs",)),
    ],
)
def test_heads_of_transformers(kind, config, head):
    import transformers

    sizes = {"num_hidden_layers": 1, "n_layers": 1, "n_layer": 1, "num_layers": 1}
    with torch.device("meta"):
        model = getattr(transformers, kind)(getattr(transformers, config)(**sizes))
    assert anatomy(model).head == head


def test_a_compiled_model_keeps_its_own_names():
    model = torch.compile(build("vit"))
    found = anatomy(model)
    assert found.family == "timm"
    assert found.head == ("_orig_mod.head",)
    assert found.blocks == ("_orig_mod.blocks.0", "_orig_mod.blocks.1")
    model.get_submodule(found.roles["qkv"][0])
    assert plain_name(found.roles["qkv"][0]) == "blocks.0.attn.qkv"


def test_compiled_blocks():
    model = build("vit")
    model.blocks[0] = torch.compile(model.blocks[0])
    found = anatomy(model)
    assert found.blocks == ("blocks.0", "blocks.1")
    assert found.roles["qkv"] == ("blocks.0._orig_mod.attn.qkv", "blocks.1.attn.qkv")
    assert found.layer_of("blocks.0._orig_mod.attn.qkv") == 0


def test_a_shared_module_is_reported_once():
    shared = nn.Linear(4, 4)
    assert anatomy(Plain(a=shared, b=shared, c=nn.Linear(4, 4))).roles["all-linear"] == ("a", "c")


def test_the_transformer_of_torch():
    from lightning.pytorch.demos.transformer import Transformer

    found = anatomy(Transformer(vocab_size=11, ninp=16, nhead=2, nhid=24, nlayers=2))
    layers = [f"transformer.{half}.layers.{i}" for half in ("encoder", "decoder") for i in (0, 1)]
    assert list(found.blocks) == layers
    attention = {
        *(f"{layer}.self_attn" for layer in layers),
        *(f"{layer}.multihead_attn" for layer in layers[2:]),
    }
    out = {f"{name}.out_proj" for name in attention}
    assert set(found.roles["attention"]) == attention | out
    assert set(found.roles["attention-out"]) == out
    assert set(found.roles["mlp-in"]) == {f"{layer}.linear1" for layer in layers}
    assert set(found.roles["mlp-out"]) == {f"{layer}.linear2" for layer in layers}


def test_experts_are_no_blocks():
    def expert() -> nn.Module:
        return Plain(w1=nn.Linear(8, 32), w2=nn.Linear(32, 8), w3=nn.Linear(8, 32))

    def block() -> nn.Module:
        experts = nn.ModuleList(expert() for _ in range(4))
        return Plain(gate=nn.Linear(8, 4), experts=experts, norm=nn.LayerNorm(8))

    found = anatomy(Plain(layers=nn.ModuleList(block() for _ in range(3))))
    assert found.blocks == ("layers.0", "layers.1", "layers.2")
    assert set(found.roles["mlp-out"]) == {
        f"layers.{i}.experts.{j}.w2" for i in range(3) for j in range(4)
    }
    assert "layers.0.gate" in found.roles["all-linear"]
    assert "layers.0.gate" not in found.roles["mlp"]


def test_pointwise_convolutions_of_an_mlp_are_linear():
    found = anatomy(on_meta("convnext_atto", conv_mlp=True))
    assert found.roles["all-linear"] == found.roles["mlp"]
    assert "stages.0.blocks.0.mlp.fc1" in found.roles["convs"]


def test_talking_heads_are_no_mlp():
    found = anatomy(on_meta("cait_xxs24_224"))
    assert not [name for name in found.roles["mlp"] if ".attn." in name]
    assert "blocks.0.attn.proj_l" in found.roles["all-linear"]


def test_layers(anatomy_of):
    found = anatomy_of("swin")
    assert layer_of(found, "layers.1.blocks.0.attn.qkv.weight") == 2
    assert layer_of(found, "layers.1.blocks.0") == 2
    assert [
        layer_of(found, name)
        for name in ("patch_embed.proj", "layers.1.downsample", "norm", "head.fc")
    ] == [None] * 4


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("norm", ("norm",)),
        (("head", "norm"), ("norm", "head")),
        ("blocks.*.mlp", ("blocks.0.mlp", "blocks.1.mlp")),
        ((), ()),
        (False, ()),
        ("blocks.1*", ("blocks.1",)),
    ],
    ids=["name", "names", "glob", "none", "false", "topmost"],
)
def test_a_named_head(given, expected, model_of):
    model = model_of("vit")
    assert anatomy(model, head=given).head == expected


def test_what_is_named_head_plays_no_role(model_of):
    found = anatomy(model_of("vit"), head="blocks.1.mlp")
    assert found.roles["mlp"] == ("blocks.0.mlp.fc1", "blocks.0.mlp.fc2")


def test_a_head_that_is_not_there_and_one_without_parameters(model_of):
    with pytest.raises(
        TargetError, match="(?s)'heed' is not a module.*'head'.*'pos_drop' has no param"
    ):
        anatomy(model_of("vit"), head=["heed", "pos_drop"])
    with pytest.raises(TargetError, match="3 is not the name of a module"):
        anatomy(model_of("vit"), head=[3])


def test_anatomy_is_copied_and_pickled(anatomy_of):
    found = anatomy_of("vit")
    assert copy.deepcopy(found) == found
    assert pickle.loads(pickle.dumps(found)) == found
