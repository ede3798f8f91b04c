"""Texts as tokens, made once and padded for each batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_peft.data.image_files import Label
from lightning_peft.data.sampling import Draw
from lightning_peft.errors import require

__all__ = ["TokenisedTexts", "Tokens"]


class Tokens:
    """The tokens of texts, without padding.

    Args:
        tokenizer: A tokeniser of transformers.
        texts: The texts.
        max_length: The largest number of tokens, including special ones; longer texts are cut, of
            two the longer one.
        pairs: The second text of each, or nothing.

    Attributes:
        cut: The number of texts that were cut.
        longest: The most tokens of a text.
        largest: The largest token.
    """

    def __init__(
        self, tokenizer: Any, texts: Sequence[str], max_length: int, pairs: Sequence[str] = ()
    ) -> None:
        collator = require("transformers", "text").DataCollatorWithPadding
        self._pad = collator(tokenizer, padding="longest")
        # a tokeniser does not take an empty list
        both = [list(part) for part in (texts, pairs) if part]
        found = tokenizer(*both, truncation=True, max_length=max_length) if texts else {}
        self._columns: dict[str, list[list[int]]] = {name: found[name] for name in found}
        ids = self._columns.get("input_ids", [])
        self.longest = max(map(len, ids), default=0)
        self.largest = max((max(row) for row in ids if row), default=0)
        self.cut = sum(bool(e.overflowing) for e in getattr(found, "encodings", None) or ())

    def padded(self, indices: Iterable[int]) -> dict[str, Tensor]:
        """Return tensors ``(B, T)`` of some texts, with T the length of the longest."""
        rows = [{name: column[i] for name, column in self._columns.items()} for i in indices]
        return dict(self._pad(rows))


class TokenisedTexts(Dataset[tuple[dict[str, Tensor], Tensor]]):
    """Tokens and labels, returned as whole batches, with ``as_is`` as ``collate_fn``.

    Args:
        tokens: The texts.
        labels: The label of each.
        task: The kind of labels.
    """

    def __init__(self, tokens: Tokens, labels: Sequence[Label], task: str) -> None:
        self.tokens = tokens
        classes = task in ("multiclass", "binary")
        self.labels = torch.tensor(labels, dtype=torch.int64 if classes else torch.float32)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int | Draw) -> tuple[dict[str, Tensor], Tensor]:
        inputs, labels = self.__getitems__([index])
        return {name: value[0] for name, value in inputs.items()}, labels[0]

    def __getitems__(self, indices: Sequence[int | Draw]) -> tuple[dict[str, Tensor], Tensor]:
        chosen = [index.image if isinstance(index, Draw) else index for index in indices]
        return self.tokens.padded(chosen), self.labels[chosen]
