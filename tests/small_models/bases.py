"""The weights of a small model: numbers, or codes as transformers makes them of a saved model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers as hf

from tests.small_models.models import Small, build

__all__ = ["BASES", "base_of", "without_head"]

BASES: dict[str, dict[str, Any] | None] = {
    "float32": None,
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "int8": {"load_in_8bit": True},
}
"""The settings of bitsandbytes, by the name of what the weights are."""


def base_of(small: Small, base: str, folder: Path, kept: Sequence[str] = ()) -> Any:
    """Return a model, always with the same weights.

    Args:
        small: Its architecture.
        base: One of :data:`BASES`.
        folder: Where the model is saved, from which transformers quantises it.
        kept: Layers that are kept out of the quantisation, beside those that transformers keeps
            by itself.
    """
    settings = BASES[base]
    if settings is None:
        return build(small)
    if not (folder / "config.json").exists():
        build(small).save_pretrained(folder)
    if kept:
        settings = {**settings, "llm_int8_skip_modules": list(kept)}
    quantised = hf.BitsAndBytesConfig(**settings)
    return getattr(hf, small.model).from_pretrained(folder, quantization_config=quantised).eval()


def without_head(message: str) -> list[str]:
    """Return the layers that a refusal asks to keep out of the quantisation.

    Args:
        message: The text of the error.
    """
    found = re.search(r"got codes, which have no gradient, in (.+?)\. Train an adapter", message)
    if found is None or "keep it out of the quantisation" not in message:
        return []
    return [name.strip().rpartition(".")[0] for name in found[1].split(",") if "." in name]
