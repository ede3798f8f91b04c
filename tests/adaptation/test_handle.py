"""The handle on an adapted backbone, beyond what the contract suite asks of every method."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lightning_peft as lp
from tests.support.zoo import build


def encoder() -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2).eval()


@torch.no_grad()
def test_a_nested_disabled_leaves_the_outer_one_as_it_found_it() -> None:
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    expected = encoder()(x)  # by the fused kernel of inference
    model = encoder()
    adaptation = lp.adapt(model, lp.LoRA(rank=2))
    switches = [layer.activation_relu_or_gelu for layer in model.layers]
    for parameter in adaptation.trained_parameters():
        parameter.add_(1)
    mine = model(x)
    with adaptation.disabled():
        on = [layer.activation_relu_or_gelu for layer in model.layers]
        assert on != switches
        with adaptation.disabled():
            assert torch.equal(model(x), expected)
        assert [layer.activation_relu_or_gelu for layer in model.layers] == on
        assert torch.equal(model(x), expected)
    assert [layer.activation_relu_or_gelu for layer in model.layers] == switches
    assert not torch.allclose(mine, expected)
    assert torch.equal(model(x), mine)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("method", [lp.LoRA(rank=2, dropout=0.5), lp.SSF(), lp.HF("pvera")])
def test_what_is_new_is_in_the_mode_that_the_model_is_in(method, training) -> None:
    model = build("vit").train(training)
    lp.adapt(model, method)
    assert {module.training for module in model.modules()} == {training}
