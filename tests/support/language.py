"""Tiny causal language models and conversations that need no network."""

from __future__ import annotations

from typing import Any

import torch

WORDS = ("red", "blue", "green", "black", "white", "grey", "pink", "brown", "gold", "teal")


def tiny_lm(kind: str = "llama", **options: Any) -> Any:
    """Build a model over bytes with two blocks, with the same random weights each time."""
    import transformers

    common = {"vocab_size": 260, "pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 259}
    if kind == "gpt2":
        config = transformers.GPT2Config(
            **common, n_embd=16, n_layer=2, n_head=2, n_positions=128,
            attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, **options,
        )  # fmt: skip
    elif kind == "mamba":
        config = transformers.MambaConfig(**common, hidden_size=16, num_hidden_layers=2, **options)
    else:
        config = transformers.LlamaConfig(
            **common, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=128, **options,
        )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(config)


def chats(count: int = 10) -> list[dict[str, Any]]:
    """Give conversations of one question."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"say {word}"},
                {"role": "assistant", "content": word.upper()},
            ]
        }
        for word in WORDS[:count]
    ]


def pairs(count: int = 10) -> list[dict[str, str]]:
    """Give a better and a worse answer to each of some prompts."""
    return [
        {"prompt": f"say {word}: ", "chosen": word.upper(), "rejected": f"no {word}"}
        for word in WORDS[:count]
    ]
