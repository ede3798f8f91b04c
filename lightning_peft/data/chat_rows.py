"""Batches of tokenised documents: padded, packed into rows, or pairs of answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_peft.data.chat_tokens import Tokenised
from lightning_peft.data.packing import packed
from lightning_peft.data.sampling import Draw

__all__ = ["IGNORED", "ChatRows", "packed_batch", "padded_batch", "paired_batch"]

IGNORED = -100
"""The label of a token that is not learned, as everywhere in transformers."""

Row = Sequence[Tokenised]
Batch = dict[str, Tensor]


class ChatRows(Dataset[Batch]):
    """Rows of documents, returned as whole batches, with ``as_is`` as ``collate_fn``.

    Args:
        documents: The documents of each example: one, or two for a pair of answers.
        form: ``"padded"`` (a row for each example), ``"packed"`` (several in a row) or ``"pairs"``.
        capacity: The length of a packed row.
        pad: The token that fills up a row.

    Attributes:
        rows: The documents of each row.
    """

    def __init__(
        self,
        documents: Sequence[Row],
        form: Literal["padded", "packed", "pairs"],
        *,
        capacity: int,
        pad: int,
    ) -> None:
        self.pad = pad
        self._batch: Callable[[Sequence[Row], int], Batch] = {
            "padded": padded_batch, "packed": packed_batch, "pairs": paired_batch
        }[form]  # fmt: skip
        self.rows: list[Row] = list(documents)
        if form == "packed":
            flat = [document for row in documents for document in row]
            together = packed([len(document.ids) for document in flat], capacity)
            self.rows = [[flat[i] for i in row] for row in together]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | Draw) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int | Draw]) -> Batch:
        chosen = [index.image if isinstance(index, Draw) else index for index in indices]
        return self._batch([self.rows[i] for i in chosen], self.pad)


def padded_batch(rows: Sequence[Row], pad: int) -> Batch:
    """Return ``input_ids``, ``attention_mask`` and ``labels`` ``(B, T)``, padded on the right."""
    documents = [document for row in rows for document in row]
    width = max(len(document.ids) for document in documents)
    shape = (len(documents), width)
    batch = {
        "input_ids": torch.full(shape, pad),
        "attention_mask": torch.zeros(shape, dtype=torch.int64),
        "labels": torch.full(shape, IGNORED),
    }
    for i, document in enumerate(documents):
        length = len(document.ids)
        batch["input_ids"][i, :length] = torch.tensor(document.ids)
        batch["attention_mask"][i, :length] = 1
        batch["labels"][i, :length] = _labels(document)
    return batch


def paired_batch(rows: Sequence[Row], pad: int) -> Batch:
    """Return a padded batch ``(2 B, T)``: first the better answers, then the worse ones."""
    return padded_batch([[row[0]] for row in rows] + [[row[1]] for row in rows], pad)


def packed_batch(rows: Sequence[Row], pad: int) -> Batch:
    """Return ``input_ids``, ``position_ids`` and ``labels`` ``(B, T)`` of rows of documents.

    The positions begin again at 0 with every document, and there is no mask: by this a model of
    transformers sees where a document begins, and lets none attend to another. The padding is a
    document of its own.
    """
    width = max(sum(len(document.ids) for document in row) for row in rows)
    shape = (len(rows), width)
    batch = {
        "input_ids": torch.full(shape, pad),
        "position_ids": torch.zeros(shape, dtype=torch.int64),
        "labels": torch.full(shape, IGNORED),
    }
    for i, row in enumerate(rows):
        start = 0
        for document in row:
            end = start + len(document.ids)
            batch["input_ids"][i, start:end] = torch.tensor(document.ids)
            batch["position_ids"][i, start:end] = torch.arange(end - start)
            batch["labels"][i, start:end] = _labels(document)
            start = end
        batch["position_ids"][i, start:] = torch.arange(width - start)
    return batch


def _labels(document: Tokenised) -> Tensor:
    """Return the labels of a document; its first token is not predicted from what is before it."""
    learn = torch.tensor(document.learn)
    learn[0] = False
    return torch.tensor(document.ids).where(learn, torch.tensor(IGNORED))
