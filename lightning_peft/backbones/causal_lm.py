"""Loading language models of Hugging Face, and their tokenisers, by name or directory."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import nn

from lightning_peft.backbones.byte_llama import BYTE_LLAMA, byte_llama_config, byte_tokenizer
from lightning_peft.backbones.hugging_face import checked_name, finding, load_config, quietly
from lightning_peft.errors import DataError, near, require, some

__all__ = [
    "DTYPES",
    "length_limit",
    "load_causal_lm",
    "load_lm_tokenizer",
    "load_seq2seq_lm",
    "vocabulary_of",
]

DTYPES = ("float32", "bfloat16", "float16", "auto")
"""What the weights may be loaded as; ``"auto"`` is as in the file."""

LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
"""The names of the most tokens in the configs of models."""

log = logging.getLogger(__name__)


def load_causal_lm(
    name: str,
    *,
    pretrained: bool = True,
    dtype: str = "float32",
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Load a causal language model with its head, in training mode.

    Args:
        name: A name on the Hugging Face hub, a local directory, or ``"byte_llama"``.
        pretrained: Load the weights; otherwise they are random.
        dtype: One of :data:`DTYPES`.
        options: Values of the config to change.

    Returns:
        A model from ``AutoModelForCausalLM``.

    Raises:
        DataError: If there is no such model, its config lacks one of the values, or its file lacks
            some of the weights.
        MissingExtraError: If transformers is not installed.
    """
    auto = require("transformers", "text").AutoModelForCausalLM
    if name == BYTE_LLAMA:
        found = dtype_of(dtype)
        if pretrained:
            log.warning(
                "'%s' has no pretrained weights: they are random. Set pretrained=false to "
                "say so, or name a model that is trained",
                BYTE_LLAMA,
            )
        fresh = dtype_of("float32") if found == "auto" else found
        made: nn.Module = auto.from_config(byte_llama_config(options), dtype=fresh)
        return made.train()
    return load_with_head(
        auto, name, ("a causal language model", "gpt2"),
        pretrained=pretrained, dtype=dtype, options=options,
    )  # fmt: skip


def load_seq2seq_lm(
    name: str,
    *,
    pretrained: bool = True,
    dtype: str = "float32",
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Load a model with an encoder and a decoder, with its head, in training mode.

    See :func:`load_causal_lm` for the arguments and errors.

    Returns:
        A model from ``AutoModelForSeq2SeqLM``.
    """
    auto = require("transformers", "text").AutoModelForSeq2SeqLM
    what = ("a model that maps texts to texts", "t5-small")
    return load_with_head(auto, name, what, pretrained=pretrained, dtype=dtype, options=options)


def load_with_head(
    auto: Any,
    name: str,
    what: tuple[str, str],
    *,
    pretrained: bool,
    dtype: str,
    options: Mapping[str, Any] | None,
) -> nn.Module:
    """Load a language model whose head is a part of its weights, in training mode.

    Args:
        auto: The class of transformers that finds it.
        name: A name on the Hugging Face hub, or a local directory.
        what: What is asked for, and a name on the hub of which there is one, for messages.
        pretrained: Load the weights; otherwise they are random.
        dtype: One of :data:`DTYPES`.
        options: Values of the config to change.

    Raises:
        DataError: As :func:`load_causal_lm`.
    """
    transformers = require("transformers", "text")
    wanted = dtype_of(dtype)
    config = load_config(name, None, options or {})
    name = checked_name(name)
    with quietly(transformers), finding(name, *what):
        if not pretrained:
            fresh = dtype_of("float32") if wanted == "auto" else wanted
            made: nn.Module = auto.from_config(config, dtype=fresh)
            return made.train()
        model, about = auto.from_pretrained(
            name, config=config, dtype=wanted, output_loading_info=True
        )
    absent = sorted({key if isinstance(key, str) else key[0] for key in about["missing_keys"]})
    if absent:
        raise DataError(
            f"Expected all weights of {type(model).__name__} in '{name}', got a file without "
            f"{some(absent, 4)}, which would be random. Name {what[0]} (a file of an "
            "encoder has no head for the next token), or build it with pretrained=false."
        )
    loaded: nn.Module = model
    return loaded.train()


def dtype_of(dtype: str) -> Any:
    """Return a dtype of torch by its name, or ``"auto"``.

    Raises:
        DataError: If it is none of :data:`DTYPES`.
    """
    import torch

    if dtype not in DTYPES:
        raise DataError(f"Expected dtype as one of {DTYPES}, got {dtype!r}. {near(dtype, DTYPES)}")
    return "auto" if dtype == "auto" else getattr(torch, dtype)


def load_lm_tokenizer(name: str) -> Any:
    """Load the tokeniser of a causal language model; one without a padding token is served, too.

    Args:
        name: A name on the Hugging Face hub, a local directory, or ``"byte_llama"``.

    Raises:
        DataError: If there is no such model, or it has no tokeniser.
        MissingExtraError: If transformers is not installed.
    """
    if name == BYTE_LLAMA:
        return byte_tokenizer()
    transformers = require("transformers", "text")
    name = checked_name(name)
    with quietly(transformers), finding(name, "a tokeniser", "gpt2"):
        return transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def length_limit(model: Any) -> int | None:
    """Return the most tokens that a model reads according to its config; ``None`` if unlimited.

    Prompts that ``peft`` puts before the input take their part of them.

    Args:
        model: A model of transformers, or anything else.
    """
    config = getattr(model, "config", None)
    inner = getattr(config, "get_text_config", None)
    config = inner() if callable(inner) else config
    if hasattr(config, "relative_attention_num_buckets"):  # T5: positions without an end
        return None
    found = [getattr(config, name, None) for name in LENGTHS]
    known = [int(value) for value in found if isinstance(value, int) and value > 0]
    return max(known[0] - _prompt_of(model), 0) if known else None


def _prompt_of(model: Any) -> int:
    """Return the trained tokens that ``peft`` puts before those of the input."""
    prompt = getattr(model, "active_peft_config", None)
    if not getattr(prompt, "is_prompt_learning", False):
        return 0
    return int(getattr(prompt, "num_virtual_tokens", None) or 0)


def vocabulary_of(model: Any) -> int | None:
    """Return the number of rows of a model's input embedding; ``None`` if it has none."""
    find = getattr(model, "get_input_embeddings", None)
    if not callable(find):
        return None
    try:
        weight = getattr(find(), "weight", None)
    except NotImplementedError:
        return None
    rows = getattr(find(), "num_embeddings", None)
    if isinstance(rows, int):  # a quantised or a sharded weight has another shape
        return rows
    return None if weight is None else int(weight.shape[0])
