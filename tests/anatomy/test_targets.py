from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
import timm
import torch
from torch import nn

from lightning_peft.anatomy import anatomy
from lightning_peft.anatomy.targets import PRESETS, layer_indices, resolve
from lightning_peft.errors import TargetError
from tests.support.zoo import build

FIRST = ("blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2")
LAST = tuple(name.replace("0", "1", 1) for name in FIRST)


@pytest.fixture(scope="module")
def vit():
    model = build("vit")
    return anatomy(model), model


@pytest.fixture(scope="module")
def resnet():
    model = build("resnet")
    return anatomy(model), model


class Config(Sequence):
    """A sequence that is no list, as Hydra's ListConfig."""

    def __repr__(self) -> str:  # the test's id, the same in every process
        return "config"

    def __init__(self, *items):
        self.items = items

    def __getitem__(self, index):
        return self.items[index]

    def __len__(self):
        return len(self.items)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("auto", FIRST + LAST),
        ("all-linear", FIRST + LAST),
        ("qkv", (FIRST[0], LAST[0])),
        ("attention", (*FIRST[:2], *LAST[:2])),
        ("mlp-out", (FIRST[3], LAST[3])),
        ("blocks", ("blocks.0", "blocks.1")),
        ("blocks.1.mlp.fc1", (LAST[2],)),
        ("attn.qkv", (FIRST[0], LAST[0])),
        ("fc1", (FIRST[2], LAST[2])),
        ("*.fc?", (*FIRST[2:], *LAST[2:])),
        ("blocks.[0].attn.*", FIRST[:2]),
        (r"re:blocks\.\d\.attn\.(qkv|proj)", (*FIRST[:2], *LAST[:2])),
        (["fc1", "qkv"], (FIRST[0], FIRST[2], LAST[0], LAST[2])),
        (("fc1", "mlp"), (*FIRST[2:], *LAST[2:])),
        (Config("fc1", "fc2"), (*FIRST[2:], *LAST[2:])),
        ("head", ("head",)),
        (["head", "qkv"], (FIRST[0], LAST[0], "head")),
        ("patch_embed.proj", ("patch_embed.proj",)),
    ],
    ids=str,
)
def test_entries(vit, targets, expected):
    assert resolve(*vit, targets) == expected


def test_a_glob_passes_over_containers_and_the_head(vit):
    matched = resolve(*vit, "*")
    assert "blocks.0" not in matched
    assert "head" not in matched
    assert {*FIRST, *LAST, "patch_embed.proj", "norm", "blocks.0.norm1"} == {*matched} - {
        "blocks.0.norm2",
        "blocks.1.norm1",
        "blocks.1.norm2",
    }


def test_containers_where_a_method_looks_inside(vit):
    assert resolve(*vit, "blocks.1", containers=True) == ("blocks.1",)


def test_a_regular_expression_matches_the_whole_name(vit):
    with pytest.raises(TargetError, match="'re:qkv' matches no module"):
        resolve(*vit, "re:qkv")


def test_a_trailing_part_ends_at_a_dot(vit):
    with pytest.raises(TargetError, match="'c1' matches no module"):
        resolve(*vit, "c1")


@pytest.mark.parametrize(
    ("exclude", "expected"),
    [
        ("mlp", (*FIRST[:2], *LAST[:2])),
        ("blocks.0", LAST),
        (["attn", "fc2"], (FIRST[2], LAST[2])),
        ("*.1.*", FIRST),
        ("re:.*qkv", (*FIRST[1:], *LAST[1:])),
        ("convs", FIRST + LAST),
        ((), FIRST + LAST),
    ],
    ids=str,
)
def test_exclude(vit, exclude, expected):
    assert resolve(*vit, "all-linear", exclude=exclude) == expected


def test_a_preset_to_exclude_may_be_empty(resnet):
    assert resolve(*resnet, "convs", exclude="qkv") == resnet[0].roles["convs"]


def test_a_misspelt_exclusion_is_an_error(vit):
    with pytest.raises(TargetError, match=r"'mlpp' matches no module"):
        resolve(*vit, "all-linear", exclude="mlpp")


def test_nothing_left(vit):
    with pytest.raises(TargetError, match="Nothing is left of .*qkv.* after `exclude='attn'`"):
        resolve(*vit, "qkv", exclude="attn")


def test_auto_takes_convolutions_where_nothing_is_linear(resnet):
    assert resolve(*resnet, "auto") == resnet[0].roles["convs"]
    assert "fc" not in resolve(*resnet, "auto")


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (1, (1,)),
        (-1, (11,)),
        (-12, (0,)),
        ([0, -1, 0], (0, 11)),
        (Config(3, 1), (1, 3)),
        (range(2), (0, 1)),
        ("last:4", (8, 9, 10, 11)),
        ("first:2", (0, 1)),
        ("2-5", (2, 3, 4, 5)),
        ("5-5", (5,)),
        ("0,3, 5", (0, 3, 5)),
        ("0,3-4,-1", (0, 3, 4, 11)),
        ("7", (7,)),
    ],
    ids=str,
)
def test_layer_indices(layers, expected):
    assert layer_indices(layers, 12) == expected


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (12, "layer 12 is out of range.*12 blocks \\(0 to 11\\)"),
        (-13, "layer -13 is out of range"),
        ("last:13", "'last:13' is out of range"),
        ("first:0", "'first:0' is out of range"),
        ("5-12", "'5-12' is out of range"),
        ("5-2", "'5-2' runs backwards"),
        ("middle:3", "'middle:3' is not a choice of layers"),
        ("", "'' is not a choice of layers"),
        ([], "no layer is chosen"),
        (True, "True is not the index of a layer"),
        (1.5, "1.5 is not the index of a layer"),
        ([0, 99, "x"], "layer 99 is out of range; 'x' is not a choice"),
        ({"a": 1}, "is not the index of a layer"),
    ],
    ids=str,
)
def test_layers_that_do_not_exist(layers, message):
    with pytest.raises(TargetError, match=message):
        layer_indices(layers, 12)


def test_layers_keep_what_is_in_their_blocks(vit):
    assert resolve(*vit, "all-linear", layers="last:1") == LAST
    assert resolve(*vit, "blocks", layers=0) == ("blocks.0",)
    assert resolve(*vit, ["norms"], layers=[1]) == ("blocks.1.norm1", "blocks.1.norm2")


def test_layers_and_targets_that_do_not_meet(vit):
    with pytest.raises(
        TargetError, match=r"Nothing of patch_embed.proj is in the layers \[0\] \(of 2"
    ):
        resolve(*vit, "patch_embed.proj", layers=0)


def test_layers_of_a_model_without_blocks():
    model = build("mlp")
    with pytest.raises(TargetError, match="Expected a model with repeated blocks for `layers=0`"):
        resolve(anatomy(model), model, "auto", layers=0)


def test_near_names_and_the_presets_of_this_model(vit, resnet):
    with pytest.raises(
        TargetError, match="(?s)'attn.qvk' .*'attn.qkv'.*qkv \\(2\\), attention \\(4\\)"
    ):
        resolve(*vit, "attn.qvk")
    with pytest.raises(
        TargetError, match="(?s)'qkv': this model has no such.*convs \\(15\\), norms"
    ):
        resolve(*resnet, "qkv")


def test_a_container_says_what_is_in_it(vit):
    with pytest.raises(
        TargetError,
        match=r"'attn' is Attention, which has no weight.*blocks.0.attn.qkv, .*\.attn\.\*'",
    ):
        resolve(*vit, "attn")
    with pytest.raises(TargetError, match="Nothing in it has either"):
        resolve(*vit, "blocks.0.mlp.act")


def test_what_is_only_in_the_head(resnet):
    model = build("convnext")
    with pytest.raises(TargetError, match=r"The head \(head.fc\) is trained in full"):
        resolve(anatomy(model), model, "fc")
    assert resolve(anatomy(model), model, "head.fc") == ("head.fc",)


def test_all_problems_at_once(vit):
    with pytest.raises(TargetError) as caught:
        resolve(*vit, ["nope", "re:(", "attn", "fc1"], exclude=["never"], layers=9)
    lines = str(caught.value)
    for problem in (
        "'nope'",
        "'re:(' is not a regular",
        "'attn' is Attention",
        "'never'",
        "layer 9 is",
    ):
        assert problem in lines
    assert "'fc1'" not in lines


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([], "`targets` is empty"),
        (["fc1", 3], "non-empty strings, got 3"),
        ("", "non-empty strings, got ''"),
        (None, "a string or a sequence of strings, got None"),
        ({"fc1": 1}, "a string or a sequence of strings"),
        (b"fc1", "a string or a sequence of strings"),
    ],
    ids=str,
)
def test_what_is_no_selection(vit, targets, message):
    with pytest.raises(TargetError, match=re.escape(message)):
        resolve(*vit, targets)


def test_the_caller_keeps_its_lists(vit):
    targets, layers, exclude = ["fc1"], [0], ["fc2"]
    resolve(*vit, targets, layers=layers, exclude=exclude)
    assert (targets, layers, exclude) == (["fc1"], [0], ["fc2"])


def test_compiled_models_take_the_names_of_the_model_inside():
    model = torch.compile(build("vit"))
    expected = ("_orig_mod.blocks.0.attn.qkv",)
    assert resolve(anatomy(model), model, "blocks.0.attn.qkv") == expected
    assert resolve(anatomy(model), model, "_orig_mod.blocks.0.attn.qkv") == expected
    assert resolve(anatomy(model), model, "attn.qkv", layers=0) == expected


def test_a_module_named_like_a_preset_that_the_model_lacks():
    model = nn.ModuleDict({"attention": nn.Linear(2, 2), "other": nn.Linear(2, 2)})
    assert resolve(anatomy(model), model, "attention") == ("attention",)


def test_presets_are_the_roles_and_auto(vit):
    assert set(PRESETS) == {"auto", *vit[0].roles}


def test_a_large_model():
    with torch.device("meta"):
        model = timm.create_model("vit_large_patch16_224")
    found = anatomy(model)
    assert len(resolve(found, model, ["auto", "*.norm?"], layers="last:12")) == 12 * 6
