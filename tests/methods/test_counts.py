"""Trainable parameters on ViT-B/16 are those that the papers state, counted without its weights."""

import pytest
import timm
import torch

import lightning_peft as lp


def vit_b():
    with torch.device("meta"):
        return timm.create_model("vit_base_patch16_224", num_classes=0)


@pytest.mark.parametrize(
    ("method", "count"),
    [
        (lp.VPTDeep(prompt_length=10), 12 * 10 * 768),
        (lp.VPTShallow(prompt_length=10), 10 * 768),
        (lp.SSF(), 205_824),
        (lp.AdaptFormer(bottleneck=8), 156_768),
        (lp.AdaptFormer(bottleneck=64), 1_189_632),
        (lp.Pfeiffer(bottleneck=8), 156_768),
        (lp.Houlsby(bottleneck=8), 313_536),
        (lp.Convpass(), 327_552),
        (lp.Convpass(attention_only=True), 163_776),
        (lp.RepAdapter(), 239_808),
        (lp.BitFit(), 102_912),
        (lp.Norm(), 38_400),
        (lp.LoRA(rank=8, targets="qkv"), 294_912),
        (lp.LoRAQV(rank=8), 294_912),
        (lp.LoRAFA(rank=8, targets="qkv"), 12 * 8 * 3 * 768),
        (lp.FacTTT(rank=4), 8_448),
        (lp.FacTTT(rank=8), 21_504),
        (lp.FacTTT(rank=16), 61_440),
        (lp.FacTTK(rank=16), 30_976),
        (lp.FacTTK(rank=32), 86_528),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_the_count_is_the_published_one(method, count):
    model = vit_b()
    adaptation = lp.adapt(model, method)
    assert adaptation.report().trained == count
    assert all(parameter.is_meta for parameter in model.parameters())
