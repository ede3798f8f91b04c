import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

import lightning_peft as lp
from lightning_peft.adaptation.layer_depths import Depths
from lightning_peft.adaptation.parameter_groups import parameter_groups
from lightning_peft.errors import MethodError, TargetError


def vit(**options):
    sizes = {"img_size": 32, "depth": 3, "embed_dim": 32, "num_heads": 2, "num_classes": 3}
    return timm.create_model("vit_tiny_patch16_224", pretrained=False, **{**sizes, **options})


class Lit(nn.Module):
    """A module with its head, registered first, beside the backbone."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(32, 5)
        self.net = vit(num_classes=0)


def by_name(module, groups):
    """What each parameter gets: its rate and its weight decay."""
    names = {id(p): name for name, p in module.named_parameters()}
    pairs = [(names[id(p)], g["lr"], g["weight_decay"]) for g in groups for p in g["params"]]
    assert len(pairs) == len({name for name, _, _ in pairs})
    return {name: (lr, decay) for name, lr, decay in pairs}


def test_layer_decay_agrees_with_timm():
    model = vit(init_values=0.1)
    reference = param_groups_layer_decay(
        model, 0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.7
    )
    for group in reference:
        group["lr"] = 1e-3 * group["lr_scale"]
    expected = by_name(model, reference)
    got = by_name(model, parameter_groups(model, 1e-3, 0.05, layer_decay=0.7))
    assert got.keys() == expected.keys()
    for name, (lr, decay) in expected.items():
        assert got[name] == (pytest.approx(lr), decay), name


FAMILIES = [
    "beit_base_patch16_224", "cait_xxs24_224", "convnext_tiny", "davit_tiny", "fastvit_t8",
    "hiera_tiny_224", "levit_128s", "maxvit_tiny_tf_224", "mobilenetv3_small_100", "pvt_v2_b0",
    "resnet18", "swin_tiny_patch4_window7_224", "vgg11", "vit_relpos_small_patch16_224",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # of timm, for some of its models
@pytest.mark.parametrize("name", FAMILIES)
def test_the_layers_of_every_family_are_timms(name):
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False, num_classes=3)
    reference = param_groups_layer_decay(model, layer_decay=0.7)
    expected = by_name(model, [{**group, "lr": group["lr_scale"]} for group in reference])
    got = by_name(model, parameter_groups(model, 1.0, layer_decay=0.7))
    assert {n: lr for n, (lr, _) in got.items()} == pytest.approx(
        {n: lr for n, (lr, _) in expected.items()}
    )


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_is_as_deep_as_timm_takes_its_place_to_be():
    with torch.device("meta"):
        model = timm.create_model("convnext_tiny", pretrained=False, num_classes=3)
    reference = param_groups_layer_decay(model, layer_decay=0.7)
    expected = by_name(model, [{**group, "lr": group["lr_scale"]} for group in reference])
    lp.adapt(model, lp.LoRA(rank=2, targets="all-linear") + lp.BitFit())
    got = by_name(model, parameter_groups(model, 1.0, layer_decay=0.7))
    assert len(got) > 100
    for name, (lr, _) in got.items():
        place = name.replace(".base_layer", "").partition(".lora_")[0]
        assert lr == pytest.approx(expected.get(place, expected.get(f"{place}.weight"))[0]), name


def test_without_timms_groups_the_blocks_are_the_layers():
    with torch.device("meta"):
        model = timm.create_model("caformer_s18", pretrained=False, num_classes=3)
    got = by_name(model, parameter_groups(model, 1.0, layer_decay=0.5))
    assert got["stem.conv.weight"][0] == pytest.approx(0.5 ** (3 + 3 + 9 + 3 + 1))
    assert got["stages.1.blocks.0.mlp.fc1.weight"][0] == pytest.approx(0.5 ** (3 + 9 + 3))
    assert got["stages.1.downsample.conv.weight"][0] == pytest.approx(0.5 ** (3 + 9 + 3 + 1))


def test_weight_decay_agrees_with_timm():
    model = vit()
    reference = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    expected = by_name(model, [{**group, "lr": 0.1} for group in reference])
    assert by_name(model, parameter_groups(model, 0.1, 0.05)) == expected


def test_the_backbone_may_be_a_child_and_the_head_beside_it():
    module = Lit()
    got = by_name(module, parameter_groups(module, 1.0, layer_decay=0.5))
    assert got["classifier.weight"][0] == 1.0
    assert got["net.norm.weight"][0] == 0.5
    assert [got[f"net.blocks.{i}.mlp.fc1.weight"][0] for i in range(3)] == [0.125, 0.25, 0.5]
    assert got["net.patch_embed.proj.weight"][0] == got["net.cls_token"][0] == 0.0625


def test_the_head_can_have_a_rate_of_its_own():
    module = Lit()
    groups = parameter_groups(module, 1.0, 0.1, head_lr=7.0)
    assert [g["name"] for g in groups] == ["decay", "no_decay", "head_decay", "head_no_decay"]
    got = by_name(module, groups)
    assert got["classifier.weight"] == (7.0, 0.1)
    assert got["classifier.bias"] == (7.0, 0.0)
    assert got["net.norm.weight"] == (1.0, 0.0)
    named = by_name(module, parameter_groups(module, 1.0, head_lr=7.0, head="net.norm"))
    assert named["net.norm.weight"][0] == 7.0
    assert named["classifier.weight"][0] == 1.0


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_names_are_unique_and_any_optimizer_takes_the_groups(layer_decay):
    groups = parameter_groups(vit(), 0.1, 0.1, layer_decay=layer_decay, head_lr=1.0)
    assert len({group["name"] for group in groups}) == len(groups)
    for kind in (torch.optim.AdamW, torch.optim.SGD):
        assert len(kind(groups).param_groups) == len(groups)


def test_only_what_is_trained_and_what_is_shared_once():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7))
    model[2].weight = model[0].weight
    model[1].requires_grad_(False)
    got = by_name(model, parameter_groups(model, 0.1, 0.5))
    assert set(got) == {"0.weight", "2.bias"}


class Odd(nn.Module):
    """Parameters whose name and shape tell what they are."""

    def __init__(self):
        super().__init__()
        self.prompt = nn.Parameter(torch.zeros(1, 5, 8))
        self.scale = nn.Parameter(torch.ones(8, 1))
        self.position_bias_table = nn.Parameter(torch.zeros(9, 2))
        self.lora_a = nn.Parameter(torch.zeros(2, 8))
        self.one = nn.Linear(8, 1)
        self.conv = nn.Conv2d(4, 1, 3)
        self.norm = nn.GroupNorm(2, 4)
        self.table = nn.Embedding(5, 4)


def test_what_decays():
    model = Odd()
    got = by_name(model, parameter_groups(model, 0.1, 0.5))
    decaying = {name for name, (_, decay) in got.items() if decay}
    assert decaying == {"lora_a", "one.weight", "conv.weight", "table.weight"}


def test_an_adapter_is_as_deep_as_its_block():
    peft = pytest.importorskip("peft")
    model = vit()
    config = peft.LoraConfig(r=2, target_modules=["qkv"])
    peft.inject_adapter_in_model(config, model)
    got = by_name(model, parameter_groups(model, 1.0, layer_decay=0.5))
    assert {name.split(".")[1] for name in got} == {"0", "1", "2"}
    for name, (lr, _) in got.items():
        assert lr == 0.5 ** (3 - int(name.split(".")[1])), name


def test_between_stages_is_as_deep_as_the_block_before():
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", pretrained=False, img_size=32, window_size=4, embed_dim=8,
        depths=(1, 2), num_heads=(1, 1), num_classes=2,
    )  # fmt: skip
    from lightning_peft.anatomy import anatomy

    depths = Depths.of(model, anatomy(model))
    assert depths.last == 4
    assert depths.parameters["patch_embed.proj.weight"] == 0
    assert depths.parameters["layers.0.blocks.0.mlp.fc1.weight"] == 1
    assert depths.parameters["layers.1.downsample.reduction.weight"] == 1
    assert depths.parameters["layers.1.blocks.1.mlp.fc1.weight"] == 3
    assert depths.parameters["norm.weight"] == 3
    assert depths.parameters["head.fc.weight"] == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1}, r"expected lr to be a number from 0, got -1"),
        ({"weight_decay": float("inf")}, r"expected weight_decay to be a number from 0, got inf"),
        ({"head_lr": True}, r"expected head_lr to be a number from 0, got True"),
        ({"layer_decay": 0.0}, r"expected layer_decay to be a number in \(0, 1\], got 0.0"),
        ({"lr": None, "layer_decay": 2}, r"None|layer_decay .* got 2"),
    ],
)
def test_impossible_arguments_are_refused(options, message):
    with pytest.raises(MethodError, match=message):
        parameter_groups(nn.Linear(2, 2), **{"lr": 0.1, **options})


def test_nothing_trained_is_refused():
    with pytest.raises(MethodError, match="expected trained parameters in this Linear, got none"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False), 0.1)


def test_layer_decay_needs_blocks():
    with pytest.raises(MethodError, match="expected a model with repeated blocks for layer_decay"):
        parameter_groups(nn.Linear(2, 2), 0.1, layer_decay=0.5)


def test_a_head_that_is_not_there_is_refused():
    with pytest.raises(TargetError, match="hed"):
        parameter_groups(vit(), 0.1, head="hed")
