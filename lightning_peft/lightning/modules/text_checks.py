"""Texts that an encoder cannot read, found before the first step."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_peft.backbones.causal_lm import vocabulary_of
from lightning_peft.errors import DataError

__all__ = ["refuse_unreadable"]

SPLITS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}
"""The splits that a stage reads."""


def refuse_unreadable(model: nn.Module, data: Any, stage: str) -> None:
    """Refuse texts that are longer than an encoder reads, or of another tokeniser.

    Args:
        model: The encoder.
        data: The data module; one of somebody else, and a model that is none of transformers, are
            not checked.
        stage: The stage of the trainer.

    Raises:
        DataError: With both numbers, and what to do.
    """
    if not hasattr(data, "tokenise") or not hasattr(data, "texts"):
        return
    limit, rows = _positions(model), vocabulary_of(model)
    problems = []
    for split in SPLITS.get(stage, ()):
        tokens = getattr(data.texts(split), "tokens", None)
        length, largest = getattr(tokens, "longest", 0), getattr(tokens, "largest", 0)
        if limit is not None and length > limit:
            problems.append(
                f"{split} texts of at most the {limit} tokens that {type(model).__name__} reads, "
                f"got one of {length}: set max_length={limit}"
            )
        if rows is not None and largest >= rows:
            problems.append(
                f"tokens below the {rows} rows of the model's embedding, got {largest} in the "
                f"{split} texts: use the tokeniser of this model"
            )
    if problems:
        raise DataError("Expected " + "; ".join(problems) + ".")


def _positions(model: nn.Module) -> int | None:
    """Return the most tokens for which a model has positions in a table; None if it has none."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa counts from behind the number of the padding
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - first
    return None
