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


class Padded(nn.Conv1d):
    """As networks of time series have it: the forward reads the settings of its layer."""

    def __init__(self, *sizes: int, **options: int) -> None:
        super().__init__(*sizes, **options)
        self.keeps, self.note = 2, [1]


@pytest.mark.parametrize(
    "plain",
    [
        nn.Conv1d(4, 6, 3, dilation=2),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Embedding(5, 4),
        Padded(4, 4, 1),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_its_settings_are_those_of_the_layer(plain: nn.Module) -> None:
    model = lp.adapt(
        nn.Sequential(copy.deepcopy(plain)), lp.LoRA(rank=2, targets=["0"]), head=False
    ).model
    for twin in (model, copy.deepcopy(model)):
        for name, value in vars(plain).items():
            if not name.startswith("_") and name not in ("training", "note"):
                assert getattr(twin[0], name) == value, name
