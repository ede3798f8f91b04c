"""Merging into codes: through the base's own quantiser with the measured loss, or into numbers."""

from __future__ import annotations

import warnings

import peft
import pytest
import torch
from torch import nn

import lightning_peft as lp
from tests.quantized.models import MODELS, bnb, dequantised, llama, output, perturbed, vit

SETTINGS = {"rank": 4, "targets": "q_proj"}


def adapted(bits: int, scale: float = 0.2) -> lp.Adaptation:
    adaptation = perturbed(lp.adapt(llama(bits), "lora", **SETTINGS), scale)
    adaptation.model.eval()
    return adaptation


def dense_sum(layer) -> torch.Tensor:
    return dequantised(layer.base_layer) + layer.get_delta_weight("default")


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_are_those_of_the_sum_by_the_library_itself(bits: int) -> None:
    adaptation = adapted(bits)
    layer = adaptation.model.model.layers[0].self_attn.q_proj
    before, codes = output(adaptation.model), layer.base_layer.weight.detach().clone()
    wanted = dense_sum(layer)
    if bits == 4:
        again = bnb.nn.Params4bit(wanted.detach(), quant_type="nf4").to("cpu")
        expected = bnb.functional.dequantize_4bit(again.data, again.quant_state)
    else:
        own, scales, _ = bnb.functional.int8_vectorwise_quant(wanted.detach().half())
        expected = bnb.functional.int8_vectorwise_dequant(own, scales)
    report = adaptation.merge()
    merged = dequantised(layer.base_layer)
    # a sum on the border of two codes may fall to either side
    assert ((merged - expected).abs() < 1e-4).float().mean() > 0.99
    assert 0 < report.weight_difference < 0.3
    assert (output(adaptation.model) - before).abs().max() < 0.3 * before.abs().max()
    adaptation.unmerge()
    assert torch.equal(layer.base_layer.weight, codes)
    assert torch.equal(output(adaptation.model), before)


def test_codes_that_would_lose_the_adapter_stay_as_they_are() -> None:
    adaptation = adapted(4, scale=1e-3)
    before = output(adaptation.model)
    with pytest.raises(lp.MethodError, match=r"codes that can hold.*merge\(dequantize=True\)"):
        adaptation.merge()
    assert torch.equal(output(adaptation.model), before)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_dense_layer_holds_the_sum_itself(bits: int) -> None:
    adaptation = adapted(bits, scale=1e-3)
    layer = adaptation.model.model.layers[0].self_attn.q_proj
    wanted, before = dense_sum(layer), output(adaptation.model)
    assert adaptation.merge(dequantize=True).weight_difference == 0.0
    adaptation.unmerge()
    assert torch.equal(output(adaptation.model), before)
    model = adaptation.merge_and_unload(dequantize=True)
    plain = model.model.layers[0].self_attn.q_proj
    assert type(plain) is nn.Linear
    assert list(plain.state_dict()) == ["weight"]
    torch.testing.assert_close(plain.weight, wanted, rtol=1e-5, atol=1e-6)
    assert type(model.model.layers[0].self_attn.k_proj) is not nn.Linear


def test_the_dense_layer_has_the_dtype_that_was_asked_for() -> None:
    model = adapted(4).merge_and_unload(dequantize="bfloat16")
    assert model.model.layers[0].self_attn.q_proj.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(("bits", "method"), [(4, "hydra"), (8, "ssf"), (4, "fact_tk")])
def test_own_methods_merge_in_both_ways(bits: int, method: str) -> None:
    adaptation = perturbed(lp.adapt(vit(bits), method), 0.3)
    model = adaptation.model.eval()
    before = output(model)
    adaptation.merge(dequantize=True)
    torch.testing.assert_close(output(model), before, rtol=0.03, atol=0.03)  # int8 rounds inputs
    adaptation.unmerge()
    assert 0 < adaptation.merge().weight_difference < 0.5
    adaptation.unmerge()
    assert torch.equal(output(model), before)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_tuner_that_reads_the_codes_itself_merges(bits: int) -> None:
    adaptation = perturbed(lp.adapt(llama(bits), "hf", tuner="shira", r=4), 0.3)
    before = output(adaptation.model.eval())
    assert 0 < adaptation.merge().weight_difference < 0.5
    adaptation.unmerge()
    assert torch.equal(output(adaptation.model), before)
    adaptation.merge(dequantize=True)
    torch.testing.assert_close(output(adaptation.model), before, rtol=0.03, atol=0.03)


def test_dequantize_without_quantised_layers_is_refused() -> None:
    with pytest.raises(lp.MethodError, match="dequantize=True: expected quantised layers among"):
        lp.adapt(nn.Sequential(nn.Linear(4, 4)), "lora", rank=1).merge(dequantize=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("bits", [4, 8])
def test_merging_is_near_that_of_peft(name: str, bits: int) -> None:
    ours = perturbed(lp.adapt(MODELS[name](bits), "lora", rank=4), 0.2)
    theirs = MODELS[name](bits)
    theirs.is_loaded_in_8bit = theirs.is_loaded_in_4bit = True
    config = ours.method.peft_config(ours.model, ours.sites)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(theirs, config)
    own = {key.removeprefix("base_model.model."): t for key, t in wrapped.state_dict().items()}
    with torch.no_grad():
        for key, tensor in ours.state_dict().items():
            if "lora" in key:
                own[key].copy_(tensor)
    ours.merge()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped.merge_adapter()
    torch.testing.assert_close(
        output(ours.model.eval()), output(wrapped.base_model.model.eval()), rtol=0.1, atol=0.1
    )
