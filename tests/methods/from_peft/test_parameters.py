"""``target_parameters``: fused experts are sites like modules, beside ``peft``."""

from __future__ import annotations

import copy
import json
from importlib.metadata import version
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor, nn

import lightning_peft as lp
from lightning_peft.files.writing import CONFIG_FILE

# peft reads what transformers calls by another name now, and warns of what a file holds beyond
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*"),
    pytest.mark.skipif(int(version("transformers").split(".")[0]) < 5, reason="no fused experts"),
]

EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
RANK, ALPHA, NUMBER = 2, 3, 4
INPUTS = torch.tensor([[5, 3, 9, 7, 4], [8, 6, 3, 11, 10]])
SIZES = {
    "vocab_size": 12, "hidden_size": 16, "intermediate_size": 24, "moe_intermediate_size": 24,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
    "num_experts": NUMBER, "num_local_experts": NUMBER, "n_routed_experts": NUMBER,
    "num_experts_per_tok": 2, "max_position_embeddings": 16, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
DEEPSEEK = {
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "num_hidden_layers": 2,
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
    "v_head_dim": 8, "head_dim": 4,
}  # fmt: skip
MODELS = {
    "Mixtral": ("q_proj", {}),
    "Qwen3Moe": ("q_proj", {}),
    "GptOss": ("q_proj", {}),
    "DeepseekV3": ("q_b_proj", DEEPSEEK),
}


def build(kind: str) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **MODELS[kind][1]})
    torch.manual_seed(0)
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


def test_dora_on_experts_is_refused_as_by_peft() -> None:
    config = config_for("Mixtral", modules=False, use_dora=True)
    with pytest.raises(ValueError, match="ParamWrapper does not work with use_dora=True"):
        peft.get_peft_model(build("Mixtral"), copy.deepcopy(config))
    model = build("Mixtral")
    with pytest.raises(lp.MethodError, match="peft refuses .*ParamWrapper does not work"):
        lp.adapt(model, config)
    assert lp.find_adaptation(model) is None


def config_for(kind: str, *, modules: bool, **settings) -> peft.LoraConfig:
    targets = [MODELS[kind][0]] if modules else []
    settings = {"target_parameters": EXPERTS, **settings}
    return peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, **settings)


def adapted(kind: str, *, modules: bool = True) -> lp.Adaptation:
    adaptation = lp.adapt(build(kind), config_for(kind, modules=modules))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adaptation.trained_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return adaptation


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(INPUTS).logits


def dense_update(adaptation: lp.Adaptation, base: Tensor, path: str) -> Tensor:
    """Compute the update of each expert from the factors, which ``peft`` keeps side by side."""
    first = adaptation.model.get_parameter(f"{path}.lora_A.default.weight")
    second = adaptation.model.get_parameter(f"{path}.lora_B.default.weight")
    update = torch.empty_like(base)
    for expert in range(NUMBER):
        a = first[expert * RANK : (expert + 1) * RANK]
        b = second[:, expert::NUMBER]
        one = ALPHA / RANK * b @ a
        update[expert] = one if one.shape == base[expert].shape else one.T
    return update


@pytest.mark.parametrize("kind", MODELS)
def test_experts_are_adapted_merged_and_removed_as_modules_are(kind: str) -> None:
    plain, adaptation = build(kind), adapted(kind)
    model, expected = adaptation.model, logits(adaptation.model)
    theirs = peft.get_peft_model(build(kind), config_for(kind, modules=True)).eval()
    theirs.base_model.model.load_state_dict(model.state_dict())
    torch.testing.assert_close(expected, logits(theirs))
    assert not torch.allclose(expected, logits(plain), atol=1e-3)
    assert adaptation.report().trained == theirs.get_nb_trainable_parameters()[0]
    counts = adaptation.report().sites
    assert counts["experts.gate_up_proj (lora)"] == counts["experts.down_proj (lora)"] == 1
    with adaptation.disabled():
        assert torch.equal(logits(model), logits(plain))
    torch.testing.assert_close(logits(model), expected)

    owner = next(site.module for site in adaptation.sites if site.parameter)
    layers = {"": "gate_up_proj", ".base_layer": "down_proj"}
    if model.get_submodule(owner).parameter_name != "gate_up_proj":
        layers = {"": "down_proj", ".base_layer": "gate_up_proj"}
    dense = {
        f"{owner}.{key}": plain.get_parameter(f"{owner}.{key}")
        + dense_update(adaptation, plain.get_parameter(f"{owner}.{key}"), owner + layer)
        for layer, key in layers.items()
    }
    unloaded = lp.find_adaptation(copy.deepcopy(model)).unload()
    assert torch.equal(logits(unloaded), logits(plain))
    assert unloaded.state_dict().keys() == plain.state_dict().keys()

    assert adaptation.merge().sites == len(adaptation.sites)
    torch.testing.assert_close(logits(model), expected)
    adaptation.unmerge()
    torch.testing.assert_close(logits(model), expected)
    merged = adaptation.merge_and_unload()
    for name, weight in dense.items():
        torch.testing.assert_close(merged.get_parameter(name), weight)
    assert not [m for m in merged.modules() if type(m).__module__.startswith("peft")]
    fresh = build(kind)
    fresh.load_state_dict(merged.state_dict())
    torch.testing.assert_close(logits(fresh), expected)


def test_an_adaptation_of_nothing_but_parameters(tmp_path: Path) -> None:
    adaptation = adapted("Mixtral", modules=False)
    assert [(site.module.rpartition(".")[2], site.parameter) for site in adaptation.sites] == [
        ("experts", "gate_up_proj"),
        ("experts", "down_proj"),
    ]
    expected, plain = logits(adaptation.model), build("Mixtral")
    with adaptation.disabled():
        assert torch.equal(logits(adaptation.model), logits(plain))
    by_hf = lp.adapt(build("Mixtral"), lp.HF("lora", targets=None, target_parameters=EXPERTS))
    assert by_hf.sites == adaptation.sites
    assert adaptation.merge().sites == 2
    torch.testing.assert_close(logits(adaptation.merge_and_unload()), expected)


@pytest.mark.parametrize("kind", ["Mixtral", "DeepseekV3"])
def test_files_and_states_go_both_ways(kind: str, tmp_path: Path) -> None:
    adaptation = adapted(kind)
    expected = logits(adaptation.model)
    adaptation.save(tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(build(kind), str(tmp_path / "ours")).eval()
    torch.testing.assert_close(logits(theirs), expected)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    for written in ("ours", "theirs"):
        assert torch.equal(logits(lp.load_adapter(build(kind), tmp_path / written)), expected)
    twin = lp.adapt(build(kind), config_for(kind, modules=True))
    twin.load_state_dict(adaptation.state_dict())
    assert torch.equal(logits(twin.model), expected)


def test_half_of_the_experts_is_merged_in_float32() -> None:
    model = build("Mixtral").bfloat16()
    adaptation = lp.adapt(model, config_for("Mixtral", modules=False))
    names = [f"{site.module}.{site.parameter}" for site in adaptation.sites]
    before = {name: t.clone() for name, t in build("Mixtral").bfloat16().state_dict().items()}
    with torch.no_grad():
        for parameter in adaptation.trained_parameters():
            assert parameter.dtype == torch.float32
            parameter.normal_(std=0.1)
    owner, key = names[1].rpartition(".")[::2]
    layer = adaptation.model.get_submodule(owner)
    path = owner if layer.parameter_name == key else f"{owner}.base_layer"
    dense = before[names[1]].float()
    dense = dense + dense_update(adaptation, dense, path)
    adaptation.merge()
    merged = adaptation.merge_and_unload().get_parameter(names[1])
    assert merged.dtype == torch.bfloat16
    torch.testing.assert_close(merged, dense.bfloat16(), rtol=8e-3, atol=0)


def test_names_that_peft_would_replace_are_adapted_as_they_are(tmp_path: Path) -> None:
    """The dense layers beside fused experts have the names that these had in older models."""
    adaptation = lp.adapt(build("DeepseekV3"), lp.LoRA(rank=2, targets="gate_proj"))
    assert [site.module for site in adaptation.sites] == [
        "model.layers.0.mlp.gate_proj",
        "model.layers.1.mlp.shared_experts.gate_proj",
    ]
    assert adaptation.model.config.model_type == "deepseek_v3"
    adaptation.save(tmp_path)  # their weights as parameters: peft would refuse these names
    written = json.loads((tmp_path / CONFIG_FILE).read_text())
    assert not written["target_modules"]
    assert written["target_parameters"] == [f"{site.module}.weight" for site in adaptation.sites]
    loaded = lp.load_adapter(build("DeepseekV3"), tmp_path)
    assert lp.find_adaptation(loaded).sites == adaptation.sites


def test_names_of_older_models_are_parameters_now() -> None:
    config = peft.LoraConfig(r=RANK, target_modules=["w1", "w2", "w3"])
    theirs = peft.get_peft_model(build("Mixtral"), copy.deepcopy(config))
    report = lp.adapt(build("Mixtral"), config).report()
    assert report.trained == theirs.get_nb_trainable_parameters()[0]
    assert set(report.sites) == {"experts.gate_up_proj (lora)", "experts.down_proj (lora)"}


def test_layers_and_exclude_choose_among_parameters() -> None:
    def adapted_layers(**settings) -> list[str]:
        method = lp.HF("lora", targets="q_b_proj", target_parameters=["o_proj.weight"], **settings)
        found = lp.adapt(build("DeepseekV3"), method).sites
        return [site.module.split(".")[2] for site in found if site.parameter == "weight"]

    assert adapted_layers() == ["0", "1"]
    assert adapted_layers(layers="last:1") == ["1"]
    assert adapted_layers(exclude="layers.1.self_attn.o_proj") == ["0"]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"lora_dropout": 0.1}, "does not work with lora_dropout"),
        ({"init_lora_weights": "pissa"}, "expected init_lora_weights to be True, False or"),
        ({"target_parameters": ["experts.up_proj"]}, r"no parameter 'experts.up_proj'. Did you"),
        ({"target_parameters": ["input_layernorm.weight"]}, "1 dimensional Parameter"),
        ({"target_parameters": ["q_proj.weight"]}, "also targeted with `target_modules`"),
    ],
    ids=str,
)
def test_what_peft_cannot_do_with_parameters_is_refused(settings, match) -> None:
    model = build("Mixtral")
    before = model.state_dict()
    with pytest.raises((lp.MethodError, lp.TargetError), match=match):
        lp.adapt(model, config_for("Mixtral", modules=True, **settings))
    assert model.state_dict().keys() == before.keys()


def test_the_updates_of_many_experts_have_no_mean_of_low_rank() -> None:
    from lightning_peft.adaptation.serving.low_rank_mean import low_rank_layers

    with pytest.raises(lp.MethodError, match="averaging updates: expected LoRA on linear layers"):
        low_rank_layers(adapted("Mixtral"))
