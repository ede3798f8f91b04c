"""Texts and the texts to write for them, as tokens of an encoder and of a decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from lightning_peft.data.sampling import Draw
from lightning_peft.errors import require

__all__ = ["TargetTexts"]

Batch = dict[str, Tensor]


class TargetTexts(Dataset[Batch]):
    """Tokens of texts and targets, returned as whole batches, with ``as_is`` as ``collate_fn``.

    Args:
        tokenizer: A tokeniser of transformers.
        texts: The texts, with their prefix.
        targets: What is to be written for each.
        max_length: The most tokens of a text; longer ones are cut.
        max_target_length: The most tokens of a target.

    Attributes:
        labels: The targets.
        cut: The number of texts that were cut.
        targets_cut: The number of targets that were cut.
        tokens: The number of tokens of the texts, and of the targets, without padding.
    """

    def __init__(
        self,
        tokenizer: Any,
        texts: Sequence[str],
        targets: Sequence[str],
        max_length: int,
        max_target_length: int,
    ) -> None:
        collator = require("transformers", "text").DataCollatorForSeq2Seq
        self._pad = collator(tokenizer, padding="longest")
        self.labels = list(targets)
        inputs = _encoded(tokenizer, max_length, text=list(texts))
        wanted = _encoded(tokenizer, max_target_length, text_target=list(targets))
        self._rows = [
            {"input_ids": ids, "labels": labels}
            for ids, labels in zip(inputs["input_ids"], wanted["input_ids"], strict=True)
        ]
        self.cut, self.targets_cut = (
            sum(bool(e.overflowing) for e in getattr(found, "encodings", None) or ())
            for found in (inputs, wanted)
        )
        self.tokens = tuple(
            sum(len(row[name]) for row in self._rows) for name in ("input_ids", "labels")
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int | Draw) -> Batch:
        return {name: value[0] for name, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int | Draw]) -> Batch:
        chosen = [index.image if isinstance(index, Draw) else index for index in indices]
        # the collator writes into the rows
        return dict(self._pad([dict(self._rows[i]) for i in chosen]))


def _encoded(tokenizer: Any, length: int, **texts: list[str]) -> Any:
    if not any(texts.values()):  # a tokeniser does not take an empty list
        return {"input_ids": []}
    return tokenizer(**texts, truncation=True, max_length=length)
