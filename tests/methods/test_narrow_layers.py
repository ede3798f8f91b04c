"""Layers that are narrower than the rank: LoRA gives them the rank that they have."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor, nn

import lightning_peft as lp

METHODS = {
    "lora": lp.LoRA(rank=8, alpha=16),
    "rslora": lp.LoRA(rank=8, alpha=16, rslora=True),
    "dora": lp.create_method("dora", rank=8),
    "lora_fa": lp.create_method("lora_fa", rank=8),
}
INPUTS = torch.randn(4, 12, generator=torch.Generator().manual_seed(3))


class Forecaster(nn.Module):
    """Its output is one number; the name of another layer ends as that of its output does."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.inner, self.out = nn.Linear(12, 16), nn.ModuleDict(), nn.Linear(16, 1)
        self.inner["out"] = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inner["out"](self.body(x).relu()))


def build() -> nn.Module:
    torch.manual_seed(0)
    return Forecaster()


def moved(adaptation: lp.Adaptation) -> lp.Adaptation:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adaptation.trained_parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return adaptation


@pytest.mark.parametrize("name", METHODS)
def test_a_narrow_layer_gets_an_update_of_its_own_rank(name: str) -> None:
    model = build()
    adaptation = lp.adapt(model, METHODS[name], head=False)
    ranks = {key: p.shape[0] for key, p in model.named_parameters() if "lora_A" in key}
    assert {key.partition(".lora_A")[0]: rank for key, rank in ranks.items()} == {
        "body": 8, "inner.out": 8, "out": 1,
    }  # fmt: skip
    kind = METHODS[name].kind
    sites = {f"body ({kind})": 1, f"out ({kind})": 1, f"out ({kind} of rank 1)": 1}
    assert adaptation.report().sites == sites
    assert len({round(layer.scaling["default"], 6) for layer in model.modules()
                if hasattr(layer, "lora_A")}) == 1, "the factor is the same everywhere"  # fmt: skip


def test_the_output_is_the_dense_sum() -> None:
    adaptation = moved(lp.adapt(build(), METHODS["lora"], head=False))
    model, plain = adaptation.model, build()
    for name in ("body", "inner.out", "out"):
        layer = model.get_submodule(name)
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        plain.get_submodule(name).weight.data += 16 / 8 * (up @ down)
    torch.testing.assert_close(model(INPUTS), plain(INPUTS))
    torch.testing.assert_close(adaptation.merge_and_unload()(INPUTS), plain(INPUTS))


@pytest.mark.parametrize("name", METHODS)
def test_it_is_saved_and_peft_alone_reads_it(name: str, tmp_path: Path) -> None:
    adaptation = moved(lp.adapt(build(), METHODS[name], head=False))
    adaptation.save(tmp_path)
    expected = adaptation.model.eval()(INPUTS)
    assert torch.equal(lp.load_adapter(build(), tmp_path).eval()(INPUTS), expected)
    alone = peft.PeftModel.from_pretrained(build(), tmp_path).eval()
    torch.testing.assert_close(alone(INPUTS), expected)


def test_one_that_is_named_is_refused() -> None:
    with pytest.raises(lp.MethodError, match=r"got 8 for out \(at most 1\)\. Lower the rank"):
        lp.adapt(build(), lp.LoRA(rank=8, targets=["body", "out"]), head=False)


def test_the_rank_that_fits_is_no_pattern() -> None:
    adaptation = lp.adapt(build(), lp.LoRA(rank=1), head=False)
    assert adaptation.report().sites == {"body (lora)": 1, "out (lora)": 2}
    assert adaptation.model.peft_config["default"].rank_pattern == {}
