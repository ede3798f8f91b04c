"""Prompts in a ``PeftModel`` of a model that writes no text."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

import lightning_peft as lp

# of transformers to peft
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is:FutureWarning")

IDS = torch.tensor([[3, 4, 5]])


def bert(auto: type) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=32,
        max_position_embeddings=16,
    )
    model: nn.Module = auto.from_config(config).eval()  # type: ignore[attr-defined]
    return model


def output(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS)[0]
    return found


@pytest.mark.parametrize(
    ("auto", "task"),
    [
        (transformers.AutoModel, "FEATURE_EXTRACTION"),
        (transformers.AutoModelForSequenceClassification, "SEQ_CLS"),
    ],
    ids=["features", "classes"],
)
def test_switched_off_it_is_the_backbone(auto: type, task: str) -> None:
    config = peft.PromptTuningConfig(task_type=task, num_virtual_tokens=2)
    adaptation = lp.adapt(peft.get_peft_model(bert(auto), config), "existing")
    model = adaptation.model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 1
    before, expected = output(model), output(bert(auto))
    with adaptation.disabled():
        torch.testing.assert_close(output(model), expected, rtol=0, atol=0)
    assert torch.equal(output(model), before)
    assert before.shape != expected.shape or not torch.allclose(before, expected)


def test_an_encoder_of_prompts_is_not_in_a_file(tmp_path: Path) -> None:
    config = peft.PromptEncoderConfig(
        task_type="SEQ_CLS", num_virtual_tokens=2, encoder_hidden_size=8
    )
    auto = transformers.AutoModelForSequenceClassification
    adaptation = lp.adapt(peft.get_peft_model(bert(auto), config), "existing")
    adaptation.save(tmp_path)
    with pytest.raises(lp.AdapterFileError, match="P_TUNING: peft writes the prompts and not the"):
        lp.load_adapter(adaptation.model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(bert(auto), str(tmp_path)).eval()
    torch.testing.assert_close(output(theirs), output(adaptation.model.eval()))
