"""``byte_llama``: a small Llama over bytes and its tokeniser, made from nothing but this file.

They need neither a network nor a file: for a first run of the command, for tests, and for what is
trained from the start. The weights are random.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_peft.errors import DataError, near, require

__all__ = ["BYTE_LLAMA", "byte_llama_config", "byte_tokenizer"]

BYTE_LLAMA = "byte_llama"
"""The name, where otherwise that of a model on the Hugging Face hub would be."""

PAD, BEGIN, START, END = "<|pad|>", "<|begin|>", "<|im_start|>", "<|im_end|>"
"""The tokens that are not a byte, in the order of their numbers from 256."""

LENGTH = 1024

CHAT = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML, with the marks around what the assistant says."""


def byte_tokenizer(max_length: int = LENGTH) -> Any:
    """Build a tokeniser whose tokens are the 256 bytes of UTF-8 and four of its own.

    Args:
        max_length: The most tokens of a text.

    Returns:
        A ``PreTrainedTokenizerFast`` with a chat template that marks the assistant's tokens.

    Raises:
        MissingExtraError: If transformers is not installed.
    """
    transformers = require("transformers", "text")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    # the letters by which ByteLevel writes the bytes, in a fixed order
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([PAD, BEGIN, START, END])
    found = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=END,
        additional_special_tokens=[START],
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
    found.chat_template = CHAT
    return found


def byte_llama_config(options: Mapping[str, Any] | None = None) -> Any:
    """Build the config of a Llama of 0.6 M parameters for :func:`byte_tokenizer`.

    Args:
        options: Values to change, such as ``hidden_size``.

    Raises:
        DataError: If the config has no such value; all are named.
        MissingExtraError: If transformers is not installed.
    """
    transformers = require("transformers", "text")
    tokens = [PAD, BEGIN, START, END]
    values = {
        "vocab_size": 256 + len(tokens),
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": LENGTH,
        "pad_token_id": 256 + tokens.index(PAD),
        "bos_token_id": 256 + tokens.index(BEGIN),
        "eos_token_id": 256 + tokens.index(END),
    }
    known = transformers.LlamaConfig().to_dict()
    strange = sorted(set(options or ()) - set(known))
    if strange:
        told = "; ".join(f"{key}: {near(key, known)}" for key in strange)
        raise DataError(f"Expected values that the config of '{BYTE_LLAMA}' has, got {told}")
    return transformers.LlamaConfig(**{**values, **(options or {})})
