"""SSF scales the channels of a layer, whichever dimension of its output they are in."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.convnext.modeling_convnext import ConvNextLayerNorm

import lightning_peft as lp

# as many channels as rows and columns, so that a scale fits along any of them
LAYERS = {
    "instance_1d": (nn.InstanceNorm1d(6, affine=True), (2, 6, 6)),
    "instance_2d": (nn.InstanceNorm2d(6, affine=True), (2, 6, 6, 6)),
    "instance_2d_one_image": (nn.InstanceNorm2d(6, affine=True), (6, 6, 6)),
    "instance_3d": (nn.InstanceNorm3d(6, affine=True), (2, 6, 6, 6, 6)),
    "batch_norm_1d": (nn.BatchNorm1d(6), (2, 6, 6)),
    "batch_norm_1d_flat": (nn.BatchNorm1d(6), (2, 6)),
    "group_norm": (nn.GroupNorm(2, 6), (2, 6, 6, 6)),
    "layer_norm": (nn.LayerNorm(6), (2, 6, 6)),
    "convnext_first": (ConvNextLayerNorm(6, data_format="channels_first"), (2, 6, 6, 6)),
    "convnext_last": (ConvNextLayerNorm(6, data_format="channels_last"), (2, 6, 6, 6)),
    "conv": (nn.Conv2d(6, 6, 1), (2, 6, 6, 6)),
    "conv_one_image": (nn.Conv2d(6, 6, 1), (6, 6, 6)),
    "transposed": (nn.ConvTranspose2d(6, 6, 1), (2, 6, 6, 6)),
    "transposed_groups": (nn.ConvTranspose2d(6, 6, 1, groups=2), (2, 6, 6, 6)),
    "transposed_1d": (nn.ConvTranspose1d(6, 6, 1), (2, 6, 6)),
    "linear": (nn.Linear(6, 6), (2, 6, 6)),
}
LAST = ("layer_norm", "convnext_last", "linear")


@pytest.mark.parametrize("case", LAYERS)
@torch.no_grad()
def test_it_scales_the_channels_and_merges(case: str) -> None:
    layer, shape = LAYERS[case]
    torch.manual_seed(0)
    x = torch.randn(shape)
    model = nn.Sequential(layer).eval()
    plain = model(x)
    adaptation = lp.adapt(model, lp.SSF(init_std=0.5, targets="0"), head=False)
    part = layer.adapter_ssf
    one_image = case.endswith("one_image")
    axis = plain.ndim - 1 if case in LAST else 0 if one_image else 1
    behind = [1] * (plain.ndim - 1 - axis)
    expected = plain * part.scale.view(-1, *behind) + part.shift.view(-1, *behind)
    torch.testing.assert_close(model(x), expected)
    adaptation.merge()
    torch.testing.assert_close(model(x), expected)
    adaptation.unmerge()
    assert torch.equal(adaptation.unload()(x), plain)
