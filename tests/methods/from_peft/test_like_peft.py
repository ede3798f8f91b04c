"""What a config of ``peft`` adapts and trains is what ``peft`` adapts and trains."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
import transformers
from torch import nn

import lightning_peft as lp

# of transformers to peft
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is:FutureWarning")

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 32,
}


def roberta(auto: type) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.RobertaConfig(**SIZES, pad_token_id=0, max_position_embeddings=16)
    model: nn.Module = auto.from_config(config).eval()  # type: ignore[attr-defined]
    return model


def layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 8))


def trained(model: nn.Module) -> set[str]:
    names = (name for name, parameter in model.named_parameters() if parameter.requires_grad)
    plain = (name.removeprefix("base_model.model.") for name in names)
    return {name.replace(".modules_to_save.default", "") for name in plain}


def test_what_a_task_trains_whole_has_no_adapter() -> None:
    config = peft.AdaLoraConfig(task_type="SEQ_CLS", total_step=9)  # its targets have a "dense"
    auto = transformers.AutoModelForSequenceClassification
    ours = lp.adapt(roberta(auto), config).model
    assert trained(ours) == trained(peft.get_peft_model(roberta(auto), config))
    assert "classifier.dense.weight" in trained(ours)


@pytest.mark.parametrize(
    "config",
    [
        peft.GraloraConfig(target_modules=["0", "2"], r=16, gralora_k=2, hybrid_r=4),
        peft.AdamssConfig(target_modules=["0", "2"], r=12),
        peft.LoraConfig(target_modules=["0", "2"], r=12),
    ],
    ids=["gralora", "adamss", "lora"],
)
def test_a_rank_above_a_layer_is_as_in_peft(config: peft.PeftConfig) -> None:
    torch.manual_seed(1)
    theirs = peft.get_peft_model(layers(), config)
    torch.manual_seed(1)
    ours = lp.adapt(layers(), config).model
    expected = {n.removeprefix("base_model.model."): p for n, p in theirs.named_parameters()}
    assert {n: p.shape for n, p in ours.named_parameters()} == {
        n: p.shape for n, p in expected.items()
    }


def test_attention_that_peft_adapts_twice_is_refused() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "output": nn.Linear(8, 8)})
    config = peft.LoraConfig(target_modules=["attention", "output"], r=2)
    with pytest.raises(lp.MethodError, match="out_proj twice: .* got attention. Use lp.LoRA"):
        lp.adapt(model, config)


def test_a_pattern_may_name_what_is_trained_whole() -> None:
    config = peft.C3AConfig(
        target_modules=["0", "2"], modules_to_save=["2"], block_size_pattern={"0": 4, "2": 8}
    )
    assert trained(lp.adapt(layers(), config).model) == trained(
        peft.get_peft_model(layers(), config)
    )
    config.block_size_pattern = {"0": 4, "3": 8}
    with pytest.raises(lp.MethodError, match="expected names of targets, '3' match none"):
        lp.adapt(layers(), config)


@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")  # of peft 0.20
def test_ia3_of_a_model_whose_output_is_trained_whole(tmp_path: Path) -> None:
    auto = transformers.AutoModelForQuestionAnswering
    theirs = peft.get_peft_model(roberta(auto), peft.IA3Config(task_type="QUESTION_ANS")).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    written = path.read_text()
    path.write_text(json.dumps({**json.loads(written), "feedforward_modules": "("}))
    with pytest.raises(lp.MethodError, match=r"feedforward_modules to be names.*got '\('"):
        lp.load_adapter(roberta(auto), tmp_path)
    path.write_text(written)
    ours = lp.load_adapter(roberta(auto), tmp_path).eval()
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).start_logits, theirs(ids).start_logits)
