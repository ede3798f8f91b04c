"""The task of a file: ``peft`` opens it with the wrapper of the task, which gives the same."""

import copy
import json

import peft
import pytest
import torch
import transformers
from torch import nn

import lightning_peft as lp

SMALL = {
    "vocab_size": 20, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "max_position_embeddings": 24,
}  # fmt: skip
BERT, ROBERTA = (
    transformers.BertConfig(**SMALL), transformers.RobertaConfig(**SMALL, type_vocab_size=1)
)  # fmt: skip
T5 = transformers.T5Config(
    vocab_size=20, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
)
IDS = torch.arange(4, 10)[None]
SEGMENTS = {"input_ids": IDS, "token_type_ids": torch.tensor([[0, 0, 1, 1, 1, 1]])}
MODELS = {
    "BertForSequenceClassification": (BERT, "SEQ_CLS", SEGMENTS),
    "RobertaForSequenceClassification": (ROBERTA, "SEQ_CLS", {"input_ids": IDS}),
    "BertForTokenClassification": (BERT, "TOKEN_CLS", SEGMENTS),
    # peft's wrapper for questions drops the segments
    "BertForQuestionAnswering": (BERT, None, SEGMENTS),
    "RobertaForQuestionAnswering": (ROBERTA, "QUESTION_ANS", {"input_ids": IDS}),
    "T5ForConditionalGeneration": (
        T5, "SEQ_2_SEQ_LM", {"input_ids": IDS, "decoder_input_ids": IDS}
    ),
    "LlamaForCausalLM": (
        transformers.LlamaConfig(**SMALL, num_key_value_heads=2), "CAUSAL_LM", {"input_ids": IDS}
    ),
}  # fmt: skip


# peft asks a model of transformers by its old name
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", MODELS)
def test_peft_opens_it_for_its_task(name, tmp_path):
    config, task, inputs = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval()
    plain, fresh = copy.deepcopy(model), copy.deepcopy(model)
    adaptation = lp.adapt(model, lp.LoRA(rank=2))
    with torch.no_grad():
        for parameter in adaptation.trained_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    adaptation.save(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] == task
    loaded = peft.PeftModel.from_pretrained(plain, tmp_path).eval()
    wrapper = peft.MODEL_TYPE_TO_PEFT_MODEL_MAPPING[task] if task else peft.PeftModel
    assert type(loaded) is wrapper
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs)[0], model(**inputs)[0], rtol=1e-5, atol=1e-6)
        again = lp.load_adapter(fresh, tmp_path)
        assert torch.equal(again.eval()(**inputs)[0], model(**inputs)[0])


def test_no_task_where_peft_would_miss_a_head(tmp_path):
    model = transformers.BertForSequenceClassification(BERT)
    lp.adapt(model, lp.LoRA(rank=2), head=()).save(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] is None
    other = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    lp.adapt(other, lp.LoRA(rank=2, targets=["0"])).save(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] is None
