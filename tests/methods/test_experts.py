"""Mixtures of experts: shared ones are layers, fused ones a target of their own."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor, nn

import lightning_peft as lp

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*"),  # of transformers and peft about each other
    pytest.mark.skipif(int(version("transformers").split(".")[0]) < 5, reason="no fused experts"),
]

IDS = torch.tensor([[5, 3, 9, 7, 4], [8, 6, 3, 11, 10]])
SIZES = {
    "vocab_size": 12, "hidden_size": 16, "intermediate_size": 24, "moe_intermediate_size": 8,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4,
    "num_experts_per_tok": 2, "moe_k": 2, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
    "shared_expert_intermediate_size": 8, "moe_layer_start_index": 1, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
MLA = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
       "v_head_dim": 8, "head_dim": 4}  # fmt: skip
FUSED = "fused experts (experts.down_proj, experts.gate_up_proj: {} parameters; "
WORD = FUSED + "targets=['auto', 'experts'] adapts them)"
KINDS = ("DeepseekV3", "Glm4Moe", "Ernie4_5_Moe", "Mixtral", "Qwen2Moe")


def build(kind: str, **more: object) -> nn.Module:
    import transformers

    names = {"Ernie4_5_Moe": "Ernie4_5_MoeForCausalLM"}
    config = getattr(transformers, f"{kind}Config")
    own = MLA if kind == "DeepseekV3" else {}
    torch.manual_seed(0)
    model = getattr(transformers, names.get(kind, f"{kind}ForCausalLM"))
    return model(config(**{**SIZES, **own, **more})).eval()


def moved(adaptation: lp.Adaptation) -> lp.Adaptation:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adaptation.trained_parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return adaptation


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(IDS).logits


def fused(model: nn.Module) -> list[str]:
    return [n for n, p in model.named_parameters() if ".experts." in n and p.ndim == 3]


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_is_adapted_and_fused_experts_are_named(kind: str) -> None:
    model = build(kind)
    layers = {n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"}
    count = sum(model.get_parameter(name).numel() for name in fused(model))
    adaptation = lp.adapt(model, lp.LoRA(rank=2))
    assert {site.module for site in adaptation.sites} == layers, "shared experts, too"
    assert adaptation.left_out == (WORD.format(f"{count:,}"),)
    assert f"without an adapter: {FUSED.format(f'{count:,}')}"[:60] in str(adaptation.report())


@pytest.mark.parametrize("kind", KINDS)
def test_experts_are_a_target(kind: str, tmp_path: Path) -> None:
    method = lp.LoRA(rank=2, alpha=3, targets=["auto", "experts"])
    model, plain = build(kind), build(kind)
    names, before = fused(plain), logits(plain)
    adaptation = lp.adapt(model, method)
    assert adaptation.left_out == ()
    assert logits(model).allclose(before, atol=1e-6)
    after = logits(moved(adaptation).model)
    assert (after - before).abs().max() > 0.01
    adaptation.save(tmp_path)
    assert torch.equal(logits(lp.load_adapter(build(kind), tmp_path)), after)
    # the update of each expert, from the factors that peft keeps side by side
    for site in adaptation.sites:
        if not site.parameter:
            layer = model.get_submodule(site.module)
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            plain.get_submodule(site.module).weight.data += 3 / 2 * b @ a
    for name in names:
        module, _, key = name.rpartition(".")
        layer = model.get_submodule(module)
        while layer.parameter_name != key:
            layer = layer.base_layer
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        update = torch.stack([b[:, e::4] @ a[2 * e : 2 * e + 2] for e in range(4)])
        plain.get_parameter(name).data += 3 / 2 * update
    torch.testing.assert_close(logits(plain), after)
    torch.testing.assert_close(logits(adaptation.merge_and_unload()), after)


@pytest.mark.parametrize("kind", ["DeepseekV3", "Glm4Moe", "Ernie4_5_Moe", "Mixtral", "Phimoe"])
def test_peft_alone_loads_layers_that_it_would_take_for_experts(kind: str, tmp_path: Path) -> None:
    method = lp.LoRA(rank=3, alpha=4, targets=["auto", "experts"])
    adaptation = moved(lp.adapt(build(kind), method))
    adaptation.save(tmp_path)  # a word of another format would be an error here
    loaded = peft.PeftModel.from_pretrained(build(kind), tmp_path).eval()
    after = logits(adaptation.model)
    assert (after - logits(build(kind))).abs().max() > 0.01
    torch.testing.assert_close(logits(loaded), after)
    torch.testing.assert_close(logits(loaded.merge_and_unload()), after)


def test_what_peft_cannot_hold_is_told_when_it_is_saved(tmp_path: Path) -> None:
    adaptation = lp.adapt(build("DeepseekV3"), lp.LoRA(rank=2, dropout=0.1))
    with pytest.warns(UserWarning, match="format of lightning-peft.*names of some adapted layers"):
        adaptation.save(tmp_path)
    assert lp.find_adaptation(lp.load_adapter(build("DeepseekV3"), tmp_path)) is not None


def test_a_checkpoint_with_both_parameters_of_experts_is_loaded() -> None:
    from lightning_peft.lightning.checkpoint_kinds import full_state, present_state

    module = nn.Module()
    module.net = build("Mixtral")
    lp.adapt(module.net, lp.LoRA(rank=2, targets=["auto", "experts"]))
    state = module.state_dict()
    back = present_state(module, full_state(module, state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


CONFIGS = {
    "all-linear": {"target_modules": "all-linear"},
    "parameters": {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    "older names": {"target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"]},
}


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("kind", ["DeepseekV3", "Mixtral"])
def test_a_config_of_peft_trains_what_peft_trains(kind: str, config: str) -> None:
    settings = peft.LoraConfig(r=2, **CONFIGS[config])
    alone = peft.get_peft_model(build(kind), settings)
    adaptation = lp.adapt(build(kind), peft.LoraConfig(r=2, **CONFIGS[config]))
    sizes = {n.removeprefix("base_model.model."): p.shape for n, p in alone.named_parameters()
             if p.requires_grad}  # fmt: skip
    ours = {n: p.shape for n, p in adaptation.model.named_parameters() if p.requires_grad}
    assert sorted(map(tuple, ours.values())) == sorted(map(tuple, sizes.values()))
    assert {n.replace(".base_layer", "") for n in ours} == {
        n.replace(".base_layer", "") for n in sizes
    }
    if (kind, config) == ("DeepseekV3", "older names"):
        assert (
            "layers whose names peft reads as fused experts (model.layers.0.mlp.gate_proj"
            in (adaptation.left_out[0])
        ), "peft leaves the shared experts out"


def test_a_method_that_cannot_adapt_parameters_says_which_one_can() -> None:
    assert (
        "; LoRA(targets=['auto', 'experts']) adapts them)"
        in (lp.adapt(build("Mixtral"), "dora").left_out[0])
    )
    for method in (lp.LoRA(dropout=0.1, targets="experts"), lp.DoRA(targets="experts")):
        with pytest.raises(lp.MethodError, match="LoRA without dropout where experts are fused"):
            lp.adapt(build("Mixtral"), method)


def test_blocks_and_exclusions_choose_experts_as_layers() -> None:
    targets = ["q_proj", "experts.down_proj"]
    kept = [("model.layers.1.self_attn.q_proj", ""), ("model.layers.1.mlp.experts", "down_proj")]
    for choice in ({"layers": "last:1"}, {"exclude": "model.layers.0"}):
        sites = lp.adapt(build("Mixtral"), lp.LoRA(targets=targets, **choice)).sites
        assert [(site.module, site.parameter) for site in sites] == kept


def test_bitfit_trains_the_biases_of_fused_experts() -> None:
    model = build("GptOss")
    biases = {n for n, p in model.named_parameters() if n.endswith("bias")}
    assert any(model.get_parameter(name).ndim == 2 for name in biases)
    assert set(lp.adapt(model, "bitfit").trained_names()) == biases
