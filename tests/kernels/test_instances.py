"""A layer of ``peft`` stands for the layer that it replaces, in code that writes to it too."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import lightning_peft as lp


@pytest.mark.parametrize("method", [lp.LoRA(rank=2), lp.HF("loha", r=2)], ids=lambda m: m.kind)
def test_code_that_adds_to_a_bias_in_place_writes_to_the_layer_itself(method: lp.Method) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model = lp.adapt(copy.deepcopy(plain), method, head=False).model
    with torch.no_grad():
        for net in (model, plain):
            net[1].bias += 0.1
            net[0].weight = nn.Parameter(2 * net[0].weight)
    x = torch.randn(3, 4)
    torch.testing.assert_close(model(x), plain(x))
    assert "bias" not in model[1]._parameters
