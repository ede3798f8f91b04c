"""Published architectures whose query, key and value are read past their layer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import lightning_peft as lp


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=3, **options)

    return make


def _swin_t() -> nn.Module:
    import torchvision

    return torchvision.models.swin_t(num_classes=3)


_BEIT: dict[str, Any] = {"img_size": 32, "depth": 2, "embed_dim": 96, "num_heads": 3}
_EVA: dict[str, Any] = {"img_size": 28, "qkv_fused": True}
MODELS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "eva02_tiny_patch14_224": (
        _timm("eva02_tiny_patch14_224", **_EVA),
        28,
        12,
    ),
    "beit_base_patch16_224": (_timm("beit_base_patch16_224", **_BEIT), 32, 2),
    "swinv2_tiny_window8_256": (
        _timm("swinv2_tiny_window8_256", img_size=64, window_size=2, depths=(1, 1, 2, 1)),
        *(64, 5),
    ),
    "swin_t": (_swin_t, 64, 12),
}


@pytest.mark.parametrize("name", MODELS)
def test_lora_on_qkv_is_the_dense_sum_and_its_merge_loads_in_the_plain_library(name) -> None:
    make, size, layers = MODELS[name]
    torch.manual_seed(0)
    plain = make().eval()
    model = copy.deepcopy(plain)
    adaptation = lp.adapt(model, "lora", rank=2, targets="qkv")
    assert len(adaptation.sites) == layers
    assert all(site.module.endswith("attn.qkv") and site.in_weight for site in adaptation.sites)
    with torch.no_grad():
        for parameter in adaptation.trained_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    named = dict(model.named_parameters())
    state = {key: named.get(key, value).detach() for key, value in plain.state_dict().items()}
    for site in adaptation.sites:
        up, down = (named[f"{site.module}.lora_{x}.default.weight"] for x in "BA")
        state[f"{site.module}.weight"] = state[f"{site.module}.weight"] + (up @ down).detach()
    x = torch.randn(1, 3, size, size)
    with torch.no_grad():
        before = plain(x)
        got = model(x)
        plain.load_state_dict(state)
        expected = plain(x)
        merged = adaptation.merge_and_unload().state_dict()
        again = make().eval()
        again.load_state_dict(merged)
    assert not torch.allclose(got, before, rtol=1e-3)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again(x), expected, rtol=1e-5, atol=1e-5)
