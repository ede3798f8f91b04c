"""Small models in the place of those that peft's tests download from a hub.

Each is the architecture of the one it stands for, of about its size, with random weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

__all__ = ["IDS", "build"]

_WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_BERT = {**_WIDE, "intermediate_size": 37, "vocab_size": 128, "max_position_embeddings": 64}
_LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def _deberta(config: Any) -> Any:
    return config(**_BERT, relative_attention=True, pos_att_type=["c2p", "p2c"])


def _opt() -> Any:
    return hf.OPTConfig(
        hidden_size=16,
        ffn_dim=32,
        word_embed_proj_dim=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=128,
        max_position_embeddings=64,
        **_ENDS,
    )


def _gpt(config: Any, **more: Any) -> Any:
    size = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 128}
    return config(**size, bos_token_id=1, eos_token_id=2, **more)


def _bart() -> Any:
    sides = {
        f"{side}_{key}": value
        for side in ("encoder", "decoder")
        for key, value in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 32))
    }
    return hf.BartConfig(
        d_model=16,
        vocab_size=128,
        max_position_embeddings=64,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
        **sides,
        **_ENDS,
    )


def _t5() -> Any:
    return hf.T5Config(
        d_model=32,
        d_ff=37,
        d_kv=8,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        vocab_size=128,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )


def _llama4() -> Any:
    return hf.Llama4TextConfig(
        **_LLAMA, head_dim=4, intermediate_size_mlp=32, num_local_experts=4,
        interleave_moe_layer_step=1,
    )  # fmt: skip


def _gpt_oss() -> Any:
    return hf.GptOssConfig(**_LLAMA, head_dim=4, num_local_experts=4, num_experts_per_tok=2)


def _resnet() -> Any:
    return hf.ResNetConfig(
        embedding_size=10,
        hidden_sizes=[10, 20, 30, 40],
        depths=[1, 1, 2, 1],
        num_labels=3,
    )


_CONFIGS: dict[str, Callable[[], Any]] = {
    "tiny-random-OPTForCausalLM": _opt,
    "tiny-random-GPT2LMHeadModel": lambda: _gpt(hf.GPT2Config),
    "tiny-random-GPTJForCausalLM": lambda: _gpt(hf.GPTJConfig, rotary_dim=4),
    "tiny-random-LlamaForCausalLM": lambda: hf.LlamaConfig(**_LLAMA),
    "tiny-dummy-qwen2": lambda: hf.Qwen2Config(**_LLAMA),
    "tiny-random-Gemma3ForCausalLM": lambda: hf.Gemma3TextConfig(**_LLAMA, head_dim=4),
    "tiny-random-T5ForConditionalGeneration-calibrated": _t5,
    "tiny-random-BartForConditionalGeneration": _bart,
    "tiny-random-BertModel": lambda: hf.BertConfig(**_BERT),
    "tiny-random-RobertaModel": lambda: hf.RobertaConfig(**_BERT),
    "tiny-random-DebertaModel": lambda: _deberta(hf.DebertaConfig),
    "tiny-random-DebertaV2Model": lambda: _deberta(hf.DebertaV2Config),
    "tiny-random-BertForSequenceClassification": lambda: hf.BertConfig(**_BERT),
    "tiny-random-RobertaForSequenceClassification": lambda: hf.RobertaConfig(**_BERT),
    "tiny-LlamaForSequenceClassification-3.2": lambda: hf.LlamaConfig(**_LLAMA, num_labels=1),
    "tiny-Llama4ForCausalLM": _llama4,
    "tiny-GptOssForCausalLM": _gpt_oss,
    "tiny-random-ResNetForImageClassification": _resnet,
}
IDS = frozenset(_CONFIGS)


def build(model_id: str, auto: Any) -> nn.Module:
    """Return the stand-in of a model of the hub, always with the same weights.

    Args:
        model_id: Its name in peft's tests; what is before the slash does not matter.
        auto: The class of transformers that peft's tests load it with.
    """
    config = _CONFIGS[model_id.rpartition("/")[2]]()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = auto.from_config(config)
        for parameter in model.parameters():  # trained norms and biases are not ones and zeros
            if parameter.dim() == 1:
                parameter.data += torch.randn_like(parameter) * 0.1
    return model.eval()


def images() -> dict[str, Tensor]:
    """Return a batch for the models of images."""
    return {"pixel_values": torch.randn(2, 3, 32, 32)}
