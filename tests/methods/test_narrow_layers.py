"""Layers that are narrower than the rank get the rank that they have."""

from __future__ import annotations

import warnings
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
    "adalora": lp.AdaLoRA(rank=4, initial_rank=8, alpha=16),
    "hf:rslora": lp.HF("lora", r=8, lora_alpha=16, use_rslora=True, alpha_pattern={"out": 4}),
    "hf:loha": lp.HF("loha", r=8, alpha=4),
    "hf:delora": lp.HF("delora", r=8),
}
FIRST = {"hf:loha": "hada_w1_b", "hf:delora": "delora_A"}
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
    factor = FIRST.get(name, "lora_A")
    ranks = {key: p.shape[0] for key, p in model.named_parameters() if f".{factor}." in key}
    assert {key.partition(f".{factor}")[0]: rank for key, rank in ranks.items()} == {
        "body": 8, "inner.out": 8, "out": 1,
    }  # fmt: skip
    kind = METHODS[name].kind
    sites = {f"body ({kind})": 1, f"out ({kind})": 1, f"out ({kind} of rank 1)": 1}
    assert adaptation.report().sites == sites
    # alpha / r, or its root; AdaLoRA divides by another tensor, which is the same everywhere
    factors = {k: layer.scaling["default"] for k, layer in model.named_modules()
               if "default" in getattr(layer, "scaling", ())}  # fmt: skip
    if name == "hf:rslora":
        assert factors.pop("body") == pytest.approx(16 / 8**0.5), "the pattern means the others"
    assert len({round(factor, 6) for factor in factors.values()}) <= 1


def test_adalora_s_budget_counts_what_a_layer_can_have() -> None:
    adaptation = lp.adapt(build(), METHODS["adalora"], head=False)
    (allocation,) = adaptation.steppers()
    assert (allocation.allocator.init_bgt, allocation.allocator.target_bgt) == (17, 9)  # by hand
    model, plain = moved(adaptation).model, build()
    for name in ("body", "inner.out", "out"):
        layer = model.get_submodule(name)
        a, b, e = (getattr(layer, f"lora_{part}")["default"] for part in "ABE")
        plain.get_submodule(name).weight.data += 16 / 8 * (b @ (e * a))
    torch.testing.assert_close(model(INPUTS), plain(INPUTS))


def test_query_and_value_of_a_narrow_model_get_their_rank() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.proj = nn.Linear(4, 12), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.proj(torch.cat(self.qkv(x).chunk(3, -1), -1)[..., :4])

    adaptation = moved(lp.adapt(nn.Sequential(Attention(), Attention()), "lora_qv", head=False))
    assert adaptation.report().sites == {"qkv (query and value of rank 4)": 2}
    x = torch.randn(3, 4)
    torch.testing.assert_close(adaptation.model(x), adaptation.merge_and_unload()(x))


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
    if name == "adalora":  # whose rank_pattern peft itself reads as LoRA's, and warns
        warnings.simplefilter("ignore")
    alone = peft.PeftModel.from_pretrained(build(), tmp_path).eval()
    torch.testing.assert_close(alone(INPUTS), expected)


NAMED = {"rank": 8, "targets": ["body", "out"]}


@pytest.mark.parametrize(
    "method",
    [
        lp.LoRA(**NAMED),
        lp.AdaLoRA(initial_rank=12, **NAMED),
        lp.HF("loha", r=8, targets=["body", "out"]),
        lp.HF("glora", r=8),  # which has one rank for all layers
    ],
    ids=lambda method: method.kind,
)
def test_one_that_is_named_is_refused_with_the_ways_out(method: lp.Method) -> None:
    ways = r"got (8|12) for .*out \(at most 1\)\. Lower the rank, or leave .* exclude=\[.*'out'\], "
    with pytest.raises(lp.MethodError, match=ways + r"or train the output whole \(head='out'\)"):
        lp.adapt(build(), method, head=False)


def test_a_part_of_the_module_is_proposed_as_the_backbone() -> None:
    model = nn.Module()
    model.encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False
    )
    model.gate, model.last = nn.Linear(8, 2), nn.LayerNorm(8)
    with pytest.raises(lp.MethodError, match=r"adapt 'encoder' alone \(backbone= of the callback"):
        lp.adapt(model, lp.LoRA(targets=["gate"]), head=False)


def test_a_config_of_peft_has_the_ranks_that_peft_gives() -> None:
    config = peft.LoraConfig(r=8, target_modules=["0", "1"])
    convolutions = lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 1, groups=4))  # noqa: E731
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft cannot merge into grouped convolutions
        alone = peft.get_peft_model(convolutions(), config)
        ours = lp.adapt(convolutions(), config, head=False)
    sizes = [p.shape for n, p in alone.named_parameters() if "lora_" in n]
    assert [p.shape for n, p in ours.model.named_parameters() if "lora_" in n] == sizes


def test_the_rank_that_fits_is_no_pattern() -> None:
    adaptation = lp.adapt(build(), lp.LoRA(rank=1), head=False)
    assert adaptation.report().sites == {"body (lora)": 1, "out (lora)": 2}
    assert adaptation.model.peft_config["default"].rank_pattern == {}
