"""Merging into weights that are held as codes: by their own quantiser, measured, or refused."""

from __future__ import annotations

import copy

import pytest
import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

import lightning_peft as lp
from lightning_peft.methods.codes import is_code
from tests.fixtures.backbone import Tiny, example


class Dequantising(torch.Tensor):
    """A tensor that looks like floating-point numbers, as those of quanto and torchao do."""

    def dequantize(self) -> Tensor:
        return self.as_subclass(Tensor)


class Coded(nn.Linear):
    """A linear layer with int8 codes and one step size."""

    @classmethod
    def of(cls, layer: nn.Linear) -> Coded:
        coded = cls(layer.in_features, layer.out_features)
        coded.bias = layer.bias
        coded.encode(layer.weight.detach())
        return coded

    def encode(self, weight: Tensor) -> None:
        self.step = weight.abs().max() / 127
        codes = (weight / self.step).round().to(torch.int8)
        self.weight = nn.Parameter(codes, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * self.step, self.bias)


def coded_model() -> Tiny:
    torch.manual_seed(0)
    model = Tiny()
    for block in model.blocks:
        block.fc1, block.fc2 = Coded.of(block.fc1), Coded.of(block.fc2)
    return model.eval()


def adapted(scale: float = 1.0, method: str = "lora", **settings: object) -> lp.Adaptation:
    if method == "lora":
        settings = {"rank": 2, "targets": "fc1"}
    adaptation = lp.adapt(coded_model(), method, **settings)
    torch.manual_seed(1)
    with torch.no_grad():
        for name in adaptation.adapter_names():
            parameter = adaptation.model.get_parameter(name)
            parameter.copy_(torch.randn_like(parameter) * scale)
    return adaptation


def requantise(self: LoraLinear, safe_merge: bool = False) -> None:
    base = self.get_base_layer()
    base.encode(base.weight * base.step + self.get_delta_weight("default"))
    self.merged_adapters.append("default")


def test_what_holds_codes() -> None:
    assert is_code(torch.ones(2, dtype=torch.int8))
    assert is_code(torch.ones(2).as_subclass(Dequantising))
    assert not is_code(torch.ones(2))
    assert not is_code(nn.Parameter(torch.ones(2, dtype=torch.bfloat16)))


def unchanged(adaptation: lp.Adaptation, match: str) -> None:
    before = copy.deepcopy(adaptation.model.state_dict())
    expected = adaptation.model(example())
    with pytest.raises(lp.MethodError, match=match):
        adaptation.merge()
    assert not adaptation.merged
    for name, tensor in adaptation.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert torch.equal(adaptation.model(example()), expected)


@pytest.mark.parametrize(
    ("method", "settings"),
    [("ssf", {}), ("hydra", {}), ("repadapter", {}), ("fact_tt", {"rank": 2})],
)
def test_no_method_computes_with_codes_as_numbers(method: str, settings: dict[str, int]) -> None:
    unchanged(adapted(0.1, method, **settings), "got codes of torch.int8 in .*Keep the adapter")


def test_nor_with_tensors_that_dequantise_themselves() -> None:
    adaptation = lp.adapt(Tiny(), "ssf")
    layer = adaptation.model.blocks[0].fc1
    weight = layer.weight.detach().as_subclass(Dequantising)
    layer._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
    with pytest.raises(lp.MethodError, match=r"got codes of torch.float32 \(Dequantising\)"):
        adaptation.merge()


def test_a_merge_of_peft_into_codes_as_if_they_were_numbers_is_refused() -> None:
    unchanged(adapted(), "expected codes that can hold the adapter, got Coded in blocks.0.fc1")
    loha = adapted(1.0, "hf", tuner="loha", r=2, targets="fc1")
    unchanged(loha, "expected codes that peft can merge into, got Coded in blocks.0.fc1")


def test_codes_that_lose_the_adapter_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LoraLinear, "merge", requantise)
    unchanged(adapted(1e-3), "expected codes that can hold the adapter, got Coded in blocks.0")


def test_a_merge_into_codes_is_measured_and_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LoraLinear, "merge", requantise)
    adaptation = adapted(scale=0.5)
    model, x = adaptation.model, example()
    expected, before = model(x), copy.deepcopy(model.blocks[0].fc1.base_layer)
    layer = model.blocks[0].fc1
    wanted = before.weight * before.step + layer.get_delta_weight("default")
    report = adaptation.merge()
    base = layer.base_layer
    assert (base.weight * base.step - wanted).abs().max() <= base.step * 0.51
    assert 0 < report.weight_difference < 0.05
    torch.testing.assert_close(model(x), expected, rtol=0.1, atol=0.1)
    adaptation.unmerge()
    assert torch.equal(base.weight, before.weight)
