"""Merging ``peft``'s layers: the bits of its safe merge, and nothing changed after a refusal."""

import copy

import peft
import pytest
import torch
from torch import nn

import lightning_peft as lp
from lightning_peft.methods.finite import all_finite

LAYERS = {
    "linear": (nn.Linear(8, 6), (4, 8)),
    "linear without bias": (nn.Linear(8, 6, bias=False), (4, 8)),
    "conv": (nn.Conv2d(4, 6, 3), (2, 4, 5, 5)),
    "embedding": (nn.Embedding(9, 8), None),
}
SETTINGS = [{}, {"lora_bias": True}, {"use_dora": True}, {"use_rslora": True}]


def adapted(layer, dtype=torch.float32, **settings):
    torch.manual_seed(1)
    model = nn.Sequential(copy.deepcopy(layer)).to(dtype)
    lp.adapt(model, lp.HF("lora", r=2, targets="0", **settings), head=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.rand_like(parameter))
    return model


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_merged_weights_are_those_of_pefts_safe_merge(kind, settings):
    layer, _ = LAYERS[kind]
    if settings.get("lora_bias") and (kind == "embedding" or layer.bias is None):
        pytest.skip("peft has no such merge")
    model = adapted(layer, **settings)
    reference = copy.deepcopy(model)
    reference[0].merge(safe_merge=True)
    lp.find_adaptation(model).merge()
    assert model[0].merged_adapters == reference[0].merged_adapters == ["default"]
    for name, tensor in reference.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_adalora_merges_to_the_bits_of_pefts_safe_merge():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 6))
    lp.adapt(model, "adalora", rank=2, initial_rank=3, targets="0", head=False)
    with torch.no_grad():
        model[0].lora_E["default"].fill_(0.5)
    reference = copy.deepcopy(model)
    reference[0].merge(safe_merge=True)
    lp.find_adaptation(model).merge()
    assert torch.equal(model[0].base_layer.weight, reference[0].base_layer.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_adapter_is_refused_and_every_bit_stays(dtype, bad):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).to(dtype)
    adaptation = lp.adapt(model, "lora", rank=2, targets=["0", "1"], head=False)
    with torch.no_grad():
        model[1].lora_A["default"].weight[0, 0] = 1.0
        model[1].lora_B["default"].weight[0, 0] = bad
    before = {name: tensor.clone() for name, tensor in model[1].state_dict().items()}
    with pytest.raises(
        lp.MethodError,
        match="expected finite numbers in the adapter, got some that are not in 1.lora_B",
    ):
        adaptation.merge()
    assert not adaptation.merged
    assert model[0].merged_adapters == model[1].merged_adapters == []
    for name, tensor in model[1].state_dict().items():
        assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num()), name
        assert tensor.dtype == before[name].dtype


def test_a_composed_base_is_left_to_peft(monkeypatch):
    class Composed(nn.Linear):
        """A linear layer with a layer inside."""

        def __init__(self):
            super().__init__(8, 8)
            self.inner = nn.Linear(8, 8)

    Composed.forward = nn.Linear.forward
    model = nn.Sequential(Composed())
    adaptation = lp.adapt(model, peft.LoraConfig(r=2, target_modules=["0"]), head=False)
    safe = []
    merge = type(model[0]).merge
    monkeypatch.setattr(
        type(model[0]),
        "merge",
        lambda self, safe_merge=False, **more: safe.append(safe_merge) or merge(self, safe_merge),
    )
    adaptation.merge()
    assert safe == [True]


@pytest.mark.parametrize(
    ("values", "finite"),
    [
        ([1.0, 2.0], True),
        ([3e38, 3e38], True),  # their sum is not
        ([1.0, float("inf")], False),
        ([float("inf"), -float("inf")], False),
        ([float("nan"), 1.0], False),
        ([], True),
    ],
)
def test_all_finite(values, finite):
    assert all_finite(torch.tensor(values)) is finite
