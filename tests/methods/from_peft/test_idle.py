"""Settings of ``peft`` that cannot act by injection are refused; the table of them is current."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import peft
import pytest
import torch
from torch import nn

import lightning_peft as lp
from lightning_peft.methods.from_peft import idle
from lightning_peft.methods.from_peft.tuners import config_class

TARGETS = ["0", "2"]
INPUT = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16), nn.Linear(16, 3))


WRAPPER: list[tuple[str, dict[str, Any], str]] = [
    ("lora", {"alora_invocation_tokens": [1, 2]}, "found in input_ids .* wrap the model with peft"),
    ("lora", {"arrow_config": {"top_k": 1}}, "use peft.tuners.lora.create_arrow_model"),
    ("lora", {"layer_replication": [[0, 1]]}, "peft.tuners.tuners_utils.replicate_layers"),
    ("lora", {"runtime_config": {"ephemeral_gpu_offload": True}}, "leave it out"),
    ("adamss", {"use_asa": True}, "expected False"),
    ("vblora", {"save_only_topk_weights": True}, "expected False"),
]
IDLE: list[tuple[str, dict[str, Any], str]] = [
    ("lora", {"loftq_config": {"loftq_bits": 4}}, "with init_lora_weights='loftq' only, got True"),
    ("lora", {"eva_config": {"rho": 1.0}}, "with init_lora_weights='eva' only"),
    ("lora", {"corda_config": {"verbose": True}}, "with init_lora_weights='corda' only"),
    ("lora", {"lora_ga_config": {"scale": "unit"}}, "with init_lora_weights='lora_ga' only"),
    ("lora", {"use_qalora": True}, "layers of GPTQ only, got none"),
    ("lora", {"qalora_group_size": 8}, "with use_qalora=True only"),
    ("lora", {"kasa_config": {"beta": 0.5}}, "kasa_config: beta weigh a loss term"),
    ("lora", {"monteclora_config": {"kl_loss_weight": 0.1}}, "kl_loss_weight weigh a loss term"),
    ("lora", {"rank_pattern": {"7": 2}}, "rank_pattern: expected names of targets, '7' match none"),
    ("lora", {"alpha_pattern": {"2": 2, "x": 1}}, "'x' match none"),
    ("adalora", {"total_step": 9, "init_lora_weights": "pissa"}, "read by LoRA and not by AdaLoRA"),
    ("adalora", {"total_step": 9, "r": 3}, "the rank is init_r"),
    ("adalora", {"total_step": 9, "rank_pattern": {"0": 3}}, "the outcome of a training"),
    ("adalora", {"total_step": 9, "init_r": 8}, r"more than target_r \(8\), got 8: none is pruned"),
    ("adalora", {"total_step": 9, "use_rslora": True}, "read by LoRA and not by AdaLoRA"),
    ("adamss", {"asa_target_subspaces": 3}, "with use_asa=True only"),
    ("osf", {"target_svd_config": {"0": 2}}, "the rank is effective_rank"),
]


def skip_unknown(tuner: str, options: Iterable[str]) -> None:
    """Skip a test of settings that an older peft does not have."""
    known = {field.name for field in dataclasses.fields(config_class(tuner.upper()))}
    if set(options) - known:
        pytest.skip(f"this peft has no {sorted(set(options) - known)}")


@pytest.mark.parametrize(("tuner", "options", "said"), WRAPPER, ids=str)
def test_what_needs_the_wrapper_of_peft_is_refused_at_once(tuner, options, said) -> None:
    with pytest.raises(lp.MethodError, match=said):
        lp.HF(tuner, **options)


@pytest.mark.parametrize(("tuner", "options", "said"), IDLE, ids=str)
def test_what_nothing_reads_is_refused_before_anything_is_changed(tuner, options, said) -> None:
    skip_unknown(tuner, options)
    model = network()
    before = list(model.state_dict())
    with pytest.raises(lp.MethodError, match=said):
        lp.adapt(model, lp.HF(tuner, targets=TARGETS, **options), head="3")
    assert list(model.state_dict()) == before


def test_the_tables_name_settings_that_this_peft_has() -> None:
    skip_unknown("LORA", ["kasa_config"])
    for tuner, key in (*idle._NEEDS_WRAPPER, *idle._IDLE):
        known = {field.name for field in dataclasses.fields(config_class(tuner))}
        assert key in known, (tuner, key)


def adalora(**options: Any) -> nn.Module:
    config = peft.AdaLoraConfig(total_step=9, target_modules=TARGETS, **options)
    torch.manual_seed(1)
    model = peft.inject_adapter_in_model(config, network())
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_adalora_of_peft_reads_none_of_them() -> None:
    skip_unknown("ADALORA", ["kasa_config"])
    expected = adalora()(INPUT)
    values = {
        "alpha_pattern": {"0": 99},
        "kasa_config": peft.KasaConfig(),
        "lora_bias": True,
        "r": 3,
        "rank_pattern": {"0.lora_E": [True] * 11 + [False]},
        "use_rslora": True,
        "velora_config": peft.VeloraConfig(),
    }
    for key, value in values.items():
        assert ("ADALORA", key) in idle._IDLE
        assert torch.equal(adalora(**{key: value})(INPUT), expected), key


@torch.no_grad()
def test_alora_of_peft_does_nothing_without_the_wrapper() -> None:
    with pytest.warns(UserWarning, match="only supported for CAUSAL_LM"):
        config = peft.LoraConfig(
            target_modules=TARGETS, alora_invocation_tokens=[1], init_lora_weights=False
        )
    model = peft.inject_adapter_in_model(config, network())
    assert torch.equal(model(INPUT), network()(INPUT))


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match:RuntimeWarning")
def test_files_of_peft_with_idle_settings_are_read(tmp_path) -> None:
    config = peft.LoraConfig(
        target_modules=TARGETS, rank_pattern={"nowhere": 2}, init_lora_weights=False
    )
    reference = peft.get_peft_model(network(), config)
    reference.save_pretrained(tmp_path)
    model = lp.load_adapter(network(), tmp_path)
    torch.testing.assert_close(model(INPUT), reference(INPUT))
