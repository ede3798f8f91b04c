"""torchao and HQQ: trained, stopped, resumed, saved, loaded by ``peft`` alone, merged.

``make test-quantized`` runs them in an environment of their own: without these libraries there is
nothing to run here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

import lightning_peft as lp
from tests.quantized.models import dense_llama, output, perturbed, tokens
from tests.quantized.test_training import fit, trained

pytest.importorskip("torchao")
pytest.importorskip("hqq")
pytestmark = pytest.mark.filterwarnings("ignore:.*")  # of these libraries about each other


def by_torchao(config: Any) -> Any:
    from torchao.quantization import quantize_

    model = dense_llama()
    quantize_(model, config, lambda m, name: type(m) is nn.Linear and "lm_head" not in name)
    return model


def int8() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return by_torchao(Int8WeightOnlyConfig())


def int4() -> Any:
    """Int4WeightOnlyConfig needs a GPU's kernels; this one runs anywhere."""
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup

    return by_torchao(IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)))


def by_hqq(bits: int) -> Any:
    from hqq.core.quantize import BaseQuantizeConfig, HQQBackend, HQQLinear

    HQQLinear.set_backend(HQQBackend.PYTORCH)
    model = dense_llama()
    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Linear and name != "lm_head":
            holder, _, key = name.rpartition(".")
            config = BaseQuantizeConfig(nbits=bits, group_size=64)
            coded = HQQLinear(layer, config, compute_dtype=torch.float32, device="cpu")
            setattr(model.get_submodule(holder), key, coded)
    return model


BASES: dict[str, Callable[[], Any]] = {
    "torchao int8": int8,
    "torchao int4": int4,
    "hqq 4": lambda: by_hqq(4),
    "hqq 8": lambda: by_hqq(8),
}
every = pytest.mark.parametrize("base", BASES)


def numbers_of(model: Any) -> Any:
    """Put plain layers of the weights that the libraries themselves dequantise."""
    for name, layer in list(model.named_modules()):
        weight = getattr(layer, "weight", None)
        coded = type(layer).__name__ == "HQQLinear" or type(weight).__module__.startswith("torchao")
        if not coded:
            continue
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False)
        found = layer.dequantize() if weight is None else weight.dequantize()
        plain.weight.data = found.detach().reshape(plain.weight.shape).float()
        holder, _, key = name.rpartition(".")
        setattr(model.get_submodule(holder), key, plain)
    return model


def module_of(base: str, stop_at: int | None = None) -> Any:
    from tests.quantized.test_training import Language

    module = Language(0, stop_at)
    module.model = BASES[base]()
    return module


@every
def test_outputs_and_gradients_are_those_of_the_dense_model(base: str) -> None:
    coded = perturbed(lp.adapt(BASES[base](), "lora", rank=2))
    plain = lp.adapt(numbers_of(BASES[base]()), "lora", rank=2)
    with torch.no_grad():
        for key, tensor in plain.state_dict().items():
            tensor.copy_(coded.state_dict()[key])
    found = [output(adaptation.model.train()) for adaptation in (coded, plain)]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    for one in found:
        one.square().mean().backward()
    for mine, theirs in zip(coded.trained_parameters(), plain.trained_parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-6)


@every
def test_counts_are_those_of_the_dense_model(base: str) -> None:
    given = {"input_ids": tokens(), "labels": tokens()}
    coded, plain = (
        lp.plan(m, "lora", rank=2, inputs=given) for m in (BASES[base](), dense_llama())
    )
    assert coded.report.total == plain.report.total
    assert coded.report.trained == plain.report.trained
    assert sum(layer.total for layer in coded.layers) == sum(layer.total for layer in plain.layers)
    assert coded.memory.weights < plain.memory.weights


@every
def test_a_run_is_resumed_and_peft_alone_loads_its_adapter(base: str, tmp_path: Path) -> None:
    whole = trained(fit(module_of(base), tmp_path / "whole"))
    with pytest.raises(RuntimeError, match="stopped"):
        fit(module_of(base, stop_at=5), tmp_path / "killed")
    last = tmp_path / "killed" / "one.ckpt"
    held = torch.load(last, weights_only=True)["state_dict"]
    assert held
    assert all("lora" in name for name in held)
    module = fit(module_of(base), tmp_path / "resumed", resumed=last)
    assert trained(module).keys() == whole.keys()
    for name, value in trained(module).items():
        assert torch.equal(value, whole[name]), name

    lp.find_adaptation(module.model).save(tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = peft.PeftModel.from_pretrained(BASES[base](), tmp_path / "adapter").eval()
    ours, given = module.model.eval(), {"input_ids": tokens()[:, :4]}
    torch.testing.assert_close(output(loaded), output(ours))
    given |= {"attention_mask": torch.ones_like(given["input_ids"])}
    words = [m.generate(**given, max_new_tokens=6, do_sample=False) for m in (ours, loaded)]
    assert torch.equal(*words)


@every
def test_a_checkpoint_of_another_quantisation_is_refused(base: str, tmp_path: Path) -> None:
    fit(module_of(base), tmp_path, steps=4)
    other = next(name for name in BASES if name != base)
    with pytest.raises(lp.BackboneMismatchError, match="quantisation"):
        fit(module_of(other), tmp_path / "b", resumed=tmp_path / "one.ckpt")


@every
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_codes_are_made_anew_by_the_library_itself(base: str, method: str) -> None:
    adaptation = perturbed(lp.adapt(BASES[base](), method, rank=4, targets="q_proj"), 0.2)
    model = adaptation.model.eval()
    before = output(model)
    report = adaptation.merge()
    assert 0 < report.weight_difference < (0.05 if "8" in base else 0.3)
    assert (output(model) - before).abs().max() < report.weight_difference * 5 * before.abs().max()
    adaptation.unmerge()
    assert torch.equal(output(model), before)
    adaptation.merge_and_unload(dequantize=True)
    torch.testing.assert_close(output(model), before, rtol=1e-4, atol=1e-5)
    assert type(model.model.layers[0].self_attn.q_proj) is nn.Linear


@every
def test_codes_that_would_lose_the_adapter_stay_as_they_are(base: str) -> None:
    adaptation = perturbed(lp.adapt(BASES[base](), "lora", rank=4, targets="q_proj"), 1e-4)
    before = output(adaptation.model.eval())
    with pytest.raises(lp.MethodError, match=r"codes that can hold.*merge\(dequantize=True\)"):
        adaptation.merge()
    assert torch.equal(output(adaptation.model), before)


def test_codes_of_an_unknown_kind_are_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_peft.anatomy.quantised.schemes import TorchAO

    monkeypatch.setattr(TorchAO, "_like", staticmethod(lambda old, weight: None))
    adaptation = perturbed(lp.adapt(int8(), "lora", rank=4, targets="q_proj"), 0.2)
    with pytest.raises(
        lp.MethodError, match=r"does not say how its codes were made.*merge\(dequantize=True\)"
    ):
        adaptation.merge()


@pytest.mark.parametrize("base", ["hqq 4", "hqq 8"])
def test_other_tuners_of_peft_are_refused_beside_hqq(base: str) -> None:
    with pytest.raises(lp.MethodError, match=r"vera: .* around HQQ's for LoRA only"):
        lp.adapt(BASES[base](), "hf", tuner="vera")


def test_other_tuners_of_peft_need_a_model_that_transformers_quantised() -> None:
    with pytest.raises(lp.MethodError, match="vera: peft refuses .*get_apply_tensor_subclass"):
        lp.adapt(int8(), "hf", tuner="vera")
