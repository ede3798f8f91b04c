"""A weight that another module reads too is not merged into: its other reader has no adapter."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

import lightning_peft as lp
from lightning_peft.adaptation.serving.exporting import export_model
from tests.support.zoo import build

# peft warns of every adapter on tied embeddings
pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")

INPUTS = torch.tensor([[5, 3, 9, 7, 4], [8, 6, 3, 11, 10]])
SIZES = {
    "vocab_size": 12, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "tie_word_embeddings": True,
}  # fmt: skip
LLAMA = {
    "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 16,
}  # fmt: skip
GPT2 = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}


def language_model(kind: str) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    if kind == "gpt2":
        config = transformers.GPT2Config(**SIZES, **GPT2)
        return transformers.GPT2LMHeadModel(config).eval()
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **LLAMA)).eval()


def moved(model: nn.Module, method) -> lp.Adaptation:
    adaptation = lp.adapt(model, method)
    with torch.no_grad():
        for parameter in adaptation.trained_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return adaptation


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(INPUTS).logits


TIED = [
    ("llama", ["embed_tokens"], "model.embed_tokens.weight (which is lm_head.weight too)"),
    ("llama", ["lm_head"], "lm_head.weight (which is model.embed_tokens.weight too)"),
    ("llama", ["embed_tokens", "lm_head"], "lm_head.weight (which is model.embed_tokens"),
    ("gpt2", ["wte"], "transformer.wte.weight (which is lm_head.weight too)"),
]


@pytest.mark.parametrize(("kind", "targets", "said"), TIED, ids=str)
def test_tied_embeddings_are_not_merged_into(kind, targets, said, tmp_path: Path) -> None:
    adaptation = moved(language_model(kind), lp.LoRA(rank=2, targets=["re:.*attn.*_proj", *targets])
                       if kind == "llama" else lp.LoRA(rank=2, targets=targets))  # fmt: skip
    model = adaptation.model
    before, expected = copy.deepcopy(model.state_dict()), logits(model)
    for merge in (adaptation.merge, adaptation.merge_and_unload):
        with pytest.raises(lp.MethodError, match="weights that only the adapted module") as error:
            merge()
        assert said in str(error.value)
    with pytest.raises(lp.ExportError, match="weights that only the adapted module reads"):
        export_model(adaptation, tmp_path / "model.safetensors")
    assert not adaptation.merged
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_backbone_without_ties_takes_the_adapter_and_its_merge(kind, tmp_path: Path) -> None:
    adaptation = moved(language_model(kind), lp.LoRA(rank=2, targets=["embed_tokens", "wte"][
        kind == "gpt2"]))  # fmt: skip
    expected = logits(adaptation.model)
    adaptation.save(tmp_path)
    untied = language_model(kind)
    untied.config.tie_word_embeddings = False
    untied.lm_head.weight = nn.Parameter(untied.lm_head.weight.detach().clone())
    with pytest.warns(UserWarning, match="was trained on another backbone"):
        lp.load_adapter(untied, tmp_path, strict_backbone=False)
    torch.testing.assert_close(logits(untied), expected)
    merged = lp.find_adaptation(untied).merge_and_unload()
    torch.testing.assert_close(logits(merged), expected)


def test_other_layers_of_a_tied_model_are_merged() -> None:
    adaptation = moved(language_model("llama"), lp.LoRA(rank=2))
    expected = logits(adaptation.model)
    merged = adaptation.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected)
    assert merged.lm_head.weight is merged.model.embed_tokens.weight


class Twice(nn.Module):
    """One layer under two names, of which ``peft`` wraps the first."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(4, 4)
        self.k = self.q
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.q(x) * self.k(x).sigmoid())


def test_one_layer_under_two_names() -> None:
    x = torch.randn(3, 4)
    adaptation = moved(Twice(), lp.LoRA(rank=2, targets="q"))
    expected = adaptation.model(x)  # both names are adapted
    adaptation.merge()
    torch.testing.assert_close(adaptation.model(x), expected)
    ours = moved(Twice(), "ssf")  # it acts on the layer itself, whichever name calls it
    expected = ours.model(x)
    ours.merge()
    torch.testing.assert_close(ours.model(x), expected)


def test_a_bias_that_is_shared_does_not_matter_to_a_merged_weight() -> None:
    model = build("vit")
    model.blocks[0].attn.proj.bias = model.blocks[1].attn.proj.bias
    assert moved(model, lp.LoRA(rank=2, targets="attn.proj")).merge().sites == 2
    model = build("vit")
    model.blocks[0].attn.proj.bias = model.blocks[1].attn.proj.bias
    adaptation = moved(model, lp.HF("lora", r=2, targets="attn.proj", lora_bias=True))
    with pytest.raises(lp.MethodError, match=r"blocks.0.attn.proj.bias \(which is blocks.1"):
        adaptation.merge()


def test_updates_that_peft_ties_itself_are_refused() -> None:
    config = peft.LoraConfig(r=2, target_modules=["embed_tokens"], ensure_weight_tying=True)
    with pytest.raises(lp.MethodError, match=r"ensure_weight_tying is kept .*'existing', or.*head"):
        lp.adapt(language_model("llama"), config)


def test_asking_which_weights_are_written_draws_no_random_numbers() -> None:
    model: Any = build("vit").train()
    model.blocks[0].mlp.fc1.weight = model.blocks[1].mlp.fc1.weight
    adaptation = lp.adapt(model, "repadapter", bottleneck=4, layers="last:1")
    before = torch.get_rng_state()
    with pytest.raises(lp.MethodError, match="weights that only the adapted module"):
        adaptation.merge()  # its dropout is in the product that would be merged
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training


WAYS = {
    "head": (lp.LoRA(rank=2), {"head": "lm_head"}),
    "also_train": (lp.LoRA(rank=2), {"also_train": "lm_head"}),
    "its weight": (lp.LoRA(rank=2), {"also_train": "lm_head.weight"}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_an_output_that_is_the_embedding_is_trained_for_both(kind, way, tmp_path: Path) -> None:
    method, settings = WAYS[way]
    adaptation = lp.adapt(language_model(kind), method, **settings)
    model: Any = adaptation.model
    tied = model.lm_head.weight
    assert tied is model.get_input_embeddings().weight
    report = adaptation.report()
    assert (report.head, report.backbone) == ((96, 0) if way == "head" else (0, 96))

    model(INPUTS, labels=INPUTS).loss.backward()
    optimizer = torch.optim.SGD(adaptation.trained_parameters(), lr=0.1)
    before = tied.detach().clone()
    optimizer.step()
    assert not torch.equal(tied, before)

    adaptation.save(tmp_path)
    again: Any = lp.load_adapter(language_model(kind), tmp_path)
    assert again.lm_head.weight is again.get_input_embeddings().weight
    assert torch.equal(logits(again), logits(model.eval()))
