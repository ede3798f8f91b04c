"""The loss of a language model in parts: the model's own, without all logits at once."""

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

import lightning_peft as lp
from lightning_peft.lightning.modules.token_loss import TokenLoss

SMALL = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2,
}  # fmt: skip
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "tied": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=True)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0, embd_pdrop=0)
    ),
}


def batch():
    torch.manual_seed(1)
    ids = torch.randint(50, (3, 12))
    labels = ids.masked_fill(torch.rand(3, 12) < 0.4, -100)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def slopes(model, loss):
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("adapted", [False, True])
def test_it_is_the_models_own(kind, adapted):
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    if adapted:
        targets = ["lm_head"] if kind == "llama" else "all-linear"
        lp.adapt(model, lp.LoRA(rank=2, targets=targets), head=False)
    own = model(**batch(), use_cache=False).loss
    expected = slopes(model, own)
    loss = TokenLoss(model, most=200)(batch())
    torch.testing.assert_close(loss, own)
    got = slopes(model, loss)
    assert got.keys() == expected.keys()
    for name, grad in got.items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-4, atol=1e-7, msg=name)


def test_no_table_of_the_vocabulary_is_kept():
    model = MODELS["llama"]()

    def tables(loss):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, id):
            loss()
        of_weights = (16, 50)
        return [s for s in kept if len(s) > 1 and s[-1] == 50 and s != of_weights]

    assert tables(lambda: model(**batch()).loss)
    assert not tables(lambda: TokenLoss(model, most=200)(batch()))


def test_the_slices_are_the_logits_where_there_are_labels():
    model = MODELS["gpt2"]().eval()
    with torch.no_grad():
        slices = list(TokenLoss(model, most=200).slices(batch()))
        logits = model(**batch()).logits[:, :-1]
    labels = batch()["labels"][:, 1:]
    assert {len(found) for found, _ in slices[:-1]} == {4}
    torch.testing.assert_close(torch.cat([f for f, _ in slices]), logits[labels != -100])
    assert torch.equal(torch.cat([t for _, t in slices]), labels[labels != -100])


def test_what_is_more_than_a_last_layer_is_left_to_the_model():
    capped = Gemma2ForCausalLM(
        Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=0.1, attn_implementation="eager")
    )
    assert TokenLoss(capped, most=200)(batch()) is None
    small = MODELS["llama"]()
    assert TokenLoss(small)(batch()) is None  # they fit at once
    small.config.output_router_logits = True
    assert TokenLoss(small, most=200)(batch()) is None
    assert TokenLoss(torch.nn.Linear(2, 2), most=200)(batch()) is None
