"""Adapter files with modules that are trained whole, and rows of an embedding, both ways."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

import lightning_peft as lp

IDS = torch.randint(3, 20, (2, 5), generator=torch.Generator().manual_seed(0))


def llama(tied: bool = False) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "vocab_size": 20}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=tied))


def tied() -> Any:
    return llama(tied=True)


def bert(kind: type[Any]) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "vocab_size": 20}
    return kind(BertConfig(**sizes, num_attention_heads=2))


Q: dict[str, Any] = {"r": 2, "target_modules": ["q_proj"]}
BOTH = ["embed_tokens", "lm_head"]
CASES: dict[str, tuple[Callable[[], Any], Callable[[], peft.PeftConfig]]] = {
    "sequences": (
        lambda: bert(BertForSequenceClassification),
        lambda: LoraConfig(task_type="SEQ_CLS", modules_to_save=["classifier", "score"]),
    ),
    "tokens": (
        lambda: bert(BertForTokenClassification),
        lambda: LoraConfig(task_type="TOKEN_CLS", modules_to_save=["classifier", "score"]),
    ),
    "suffixes": (llama, lambda: LoraConfig(**Q, modules_to_save=BOTH)),
    "tied": (tied, lambda: LoraConfig(**Q, modules_to_save=BOTH)),
    "output": (tied, lambda: LoraConfig(**Q, modules_to_save=["lm_head"])),
    "embedding": (tied, lambda: LoraConfig(**Q, modules_to_save=["embed_tokens"])),
    "inner": (llama, lambda: LoraConfig(**Q, modules_to_save=["layers.1", "model.norm"])),
    "rows": (llama, lambda: LoraConfig(**Q, trainable_token_indices=[3, 5])),
    "tied rows": (tied, lambda: LoraConfig(**Q, trainable_token_indices=[3, 5])),
    "two layers": (
        llama,
        lambda: LoraConfig(**Q, trainable_token_indices={"embed_tokens": [3], "lm_head": [4, 5]}),
    ),
}


def moved(model: Any) -> Any:
    """Change what is trained, the same in each model."""
    generator = torch.Generator().manual_seed(1)
    for _, parameter in sorted(model.named_parameters(), key=lambda pair: pair[1].shape):
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def outputs(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=IDS).logits
        return found


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer")
@pytest.mark.parametrize("case", CASES)
def test_files_travel_both_ways(case: str, tmp_path: Path) -> None:
    make, config = CASES[case]
    theirs = moved(peft.get_peft_model(make(), config()))
    theirs.save_pretrained(str(tmp_path / "theirs"))
    model = lp.load_adapter(make(), tmp_path / "theirs")
    assert torch.equal(outputs(model), outputs(theirs))
    adaptation = lp.find_adaptation(model)
    assert adaptation is not None
    trained = sum(p.numel() for p in adaptation.trained_parameters())
    assert trained == theirs.get_nb_trainable_parameters()[0]

    moved(model)
    adaptation.save(tmp_path / "ours")
    plain = peft.PeftModel.from_pretrained(make(), str(tmp_path / "ours"))
    assert torch.equal(outputs(plain), outputs(model))
    again = lp.load_adapter(make(), tmp_path / "ours")
    assert torch.equal(outputs(again), outputs(model))

    twin: Any = copy.deepcopy(again)
    assert torch.equal(outputs(twin), outputs(model))
    wanted = outputs(model)
    merged = adaptation.merge_and_unload()
    assert torch.allclose(outputs(merged), wanted, atol=1e-5)
    assert [n for n, _ in merged.named_modules()] == [n for n, _ in make().named_modules()]
    found = lp.find_adaptation(twin)
    assert found is not None
    if not found.keeps_originals():
        with found.disabled():
            assert found.head or torch.equal(outputs(twin), outputs(make()))
    assert torch.equal(outputs(twin), wanted)
    if case in ("output", "tied rows"):  # nothing else is trained in place
        found.unload()
        assert torch.equal(outputs(twin), outputs(make()))
        assert twin.lm_head.weight is twin.model.embed_tokens.weight


def test_a_module_in_another_is_written_once(tmp_path: Path) -> None:
    config = LoraConfig(**Q, modules_to_save=["mlp", "up_proj"])  # whose file peft cannot read
    adaptation = lp.adapt(llama(), config)
    moved(adaptation.model)
    adaptation.save(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"]
    assert saved == ["model.layers.0.mlp", "model.layers.1.mlp"]
    plain = peft.PeftModel.from_pretrained(llama(), str(tmp_path))
    assert torch.equal(outputs(plain), outputs(adaptation.model))


def test_rows_and_modules_that_are_not_there_are_refused() -> None:
    def refused(match: str, **settings: Any) -> None:
        with pytest.raises(lp.PEFTError, match=match):
            lp.adapt(llama(), LoraConfig(**Q, **settings))

    refused("modules_to_save has no module 'classifer'", modules_to_save=["classifer"])
    refused("expected names of embeddings, got 'wte'|got wte", trainable_token_indices={"wte": [1]})
    refused("expected indices of rows, got 20 for model.embed_tokens of 20 rows",
            trainable_token_indices=[3, 20])  # fmt: skip
    refused("neither targets nor in modules_to_save, got model.embed_tokens",
            trainable_token_indices={"tokens": [1]}, modules_to_save=["embed_tokens"])  # fmt: skip


def test_no_head_does_not_take_back_what_the_config_of_peft_trains(tmp_path: Path) -> None:
    def model() -> Any:
        return bert(BertForSequenceClassification)

    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query"])
    theirs = peft.get_peft_model(model(), copy.deepcopy(config))
    adaptation = lp.adapt(model(), config, head=False)
    assert adaptation.head == ()
    assert len(adaptation.trained_parameters()) == sum(p.requires_grad for p in theirs.parameters())
    assert "classifier.weight" in adaptation.trained_names()
    with torch.no_grad():
        for parameter in adaptation.trained_parameters():
            parameter += 0.1
    adaptation.save(tmp_path)
    read = peft.PeftModel.from_pretrained(model(), str(tmp_path)).eval()
    with torch.no_grad():
        expected = adaptation.model.eval()(input_ids=IDS).logits
        torch.testing.assert_close(read(input_ids=IDS).logits, expected)
