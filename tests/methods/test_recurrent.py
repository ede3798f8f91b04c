"""Recurrent layers and cells: adapted wherever they are, or named."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import lightning_peft as lp

INPUTS = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(3))


class Decoder(nn.Module):
    """A cell that is called step by step."""

    def __init__(self, kind: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.cell, self.head = kind(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class Tagger(nn.Module):
    """Repeated blocks, and a recurrent layer behind them that holds most of the weights."""

    def __init__(self, block: type[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(block() for _ in range(3)))
        self.memory = nn.LSTM(6, 32, batch_first=True)
        self.head = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.memory(self.blocks(x))[0])


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(6), nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.fc1(self.norm(x)).relu())


class Convolved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv1d(5, 5, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x).relu())


def moved(adaptation: lp.Adaptation) -> lp.Adaptation:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adaptation.model.named_parameters():
            if name in adaptation.adapter_names():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return adaptation


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_a_cell_is_adapted_through_its_weights(kind: type[nn.RNNCellBase]) -> None:
    torch.manual_seed(0)
    plain = Decoder(kind)
    adaptation = moved(lp.adapt(copy.deepcopy(plain), lp.LoRA(rank=2, alpha=6), head="head"))
    assert adaptation.report().sites == {"ih (lora)": 1, "hh (lora)": 1}
    for side in ("ih", "hh"):
        layer = adaptation.model.get_submodule(f"cell.{side}")
        update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        plain.get_parameter(f"cell.weight_{side}").data += 6 / 2 * update
    torch.testing.assert_close(adaptation.model(INPUTS), plain(INPUTS))
    torch.testing.assert_close(adaptation.merge_and_unload()(INPUTS), plain(INPUTS))
    names = lp.adapt(Decoder(kind), "bitfit", head="head").trained_names()
    assert {"cell.bias_ih", "cell.bias_hh"} <= set(names)


def test_a_recurrent_layer_behind_the_blocks_is_a_linear_one() -> None:
    adaptation = lp.adapt(Tagger(Dense), "lora", head="head")
    assert {"memory.ih_l0", "memory.hh_l0"} <= {site.module for site in adaptation.sites}
    assert adaptation.left_out == ()


def test_one_behind_convolutions_is_named_with_the_word_that_adapts_it() -> None:
    # 4 gates of 32 rows, for 6 inputs and 32 states
    line = "recurrent layers (memory.weight_hh_l0, memory.weight_ih_l0: 4,864 parameters; {})"
    word = "targets=['auto', 'memory'] adapts them"
    adaptation = lp.adapt(Tagger(Convolved), "lora", head="head")
    assert adaptation.left_out == (line.format(word),)
    assert adaptation.report().to_dict()["left_out"] == [line.format(word)]
    named = lp.adapt(Tagger(Convolved), lp.LoRA(targets=["auto", "memory"]), head="head")
    assert named.left_out == ()
    assert {site.module for site in named.sites} > {site.module for site in adaptation.sites}
    scaled = lp.adapt(Tagger(Dense), "ssf", head="head")
    assert scaled.left_out == (line.format("LoRA(targets=['auto', 'memory']) adapts them"),)
    assert lp.adapt(Tagger(Dense), lp.LoRA(targets="fc1"), head="head").left_out == ()


def test_convolutions_beside_what_is_adapted_are_named_where_they_are_the_larger_part() -> None:
    def network(width: int) -> nn.Module:
        return nn.Sequential(nn.Conv1d(5, width, 3), nn.Conv1d(width, 5, 3), nn.Linear(2, 4))

    large = lp.adapt(network(8), lp.LoRA(rank=1), head=False)
    line = (
        "convolutions (0.weight, 1.weight: 240 parameters; targets=['auto', 'convs'] adapts them)"
    )
    assert large.left_out == (line,)
    small = nn.Sequential(nn.Conv1d(5, 5, 3), nn.Linear(4, 40))
    assert lp.adapt(small, lp.LoRA(rank=1), head=False).left_out == ()
