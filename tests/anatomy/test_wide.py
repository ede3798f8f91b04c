"""A new head of timm often has weights 25 times as large as torch's: told, and mended in ours."""

import math

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import lightning_peft as lp
from lightning_peft.anatomy.wide import times_linear, wide_layers


def test_a_linear_layer_of_torch_is_the_unit():
    torch.manual_seed(0)
    assert times_linear(nn.Linear(1280, 100)) == pytest.approx(1, rel=0.01)
    assert times_linear(nn.Conv2d(64, 100, 3)) == pytest.approx(1, rel=0.02)
    assert times_linear(nn.LayerNorm(8)) == times_linear(nn.Identity()) == 0


@pytest.mark.parametrize("name", ["test_efficientnet", "lcnet_035"])
def test_a_ready_module_starts_at_the_loss_of_chance_where_timm_does_not(name):
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=2).eval()
    (head,) = [layer for layer in plain.get_classifier().modules() if isinstance(layer, nn.Linear)]
    assert times_linear(head) > 10
    torch.manual_seed(0)
    module = lp.ImageClassifier(name, 2, pretrained=False).eval()
    assert times_linear(module.backbone.get_classifier()) == pytest.approx(1, rel=0.1)
    features = torch.rand(64, head.in_features) * 2  # as after a ReLU and the mean over places
    labels = torch.arange(64) % 2

    def loss(layer):
        return nn.functional.cross_entropy(layer(features), labels).item()

    assert loss(module.backbone.get_classifier()) < math.log(2) + 0.3 < 2 < loss(head)


def test_what_timm_draws_small_is_left_bit_for_bit():
    torch.manual_seed(0)
    plain = timm.create_model("test_vit", num_classes=3)
    torch.manual_seed(0)
    module = lp.ImageClassifier("test_vit", 3, pretrained=False)
    found = module.backbone.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in plain.state_dict().items())


def test_a_pretrained_head_with_as_many_classes_is_kept(tmp_path):
    plain = timm.create_model("test_efficientnet", num_classes=2)
    save_file(plain.state_dict(), tmp_path / "it.safetensors")
    overlay = {"file": str(tmp_path / "it.safetensors"), "num_classes": 2}
    module = lp.ImageClassifier(
        "test_efficientnet", 2, backbone_kwargs={"pretrained_cfg_overlay": overlay}
    )
    assert torch.equal(module.backbone.classifier.weight, plain.classifier.weight)


def test_of_another_module_it_is_told():
    model = timm.create_model("test_efficientnet", num_classes=2)
    (name,) = wide_layers(model, ["classifier"])
    assert name == "classifier"
    model.classifier.reset_parameters()
    assert wide_layers(model, ["classifier"]) == {}
