"""Scores of tagged words: entities as seqeval finds them, or tags that stand for themselves."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_peft.errors import require
from lightning_peft.evaluation.tables import ClassScores

__all__ = ["TagCounts", "TagScores", "per_type_table", "scores_of"]

PARTS = 3
"""What is counted of each type: found correctly, called, true."""

ENTITY = re.compile(r"O|[BIES]-.+")


class TagCounts:
    """Counts what was found in sentences.

    If every tag is ``O`` or begins with ``B-``, ``I-``, ``E-`` or ``S-``, entities are counted: one
    is found if its words and its type are right, by ``seqeval``, which reads what is badly formed
    as the evaluation of CoNLL does. Otherwise (parts of speech) every word counts with its tag.

    Args:
        names: The tags, in the order of their numbers.

    Attributes:
        entities: Whether entities are counted.
        types: The types of entities, or the tags.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.entities = all(map(ENTITY.fullmatch, self.names)) and set(self.names) != {"O"}
        found = {name[2:] for name in self.names if name != "O"}
        self.types = tuple(sorted(found)) if self.entities else tuple(self.names)
        self._find: Any = None
        if self.entities:
            self._find = require("seqeval.metrics.sequence_labeling", "text").get_entities

    def __call__(self, called: Tensor, truth: Tensor) -> Tensor:
        """Count sentences.

        Args:
            called: The predicted tags ``(B, T)``, by number.
            truth: The true tags ``(B, T)``; negative where there is no word.

        Returns:
            Shape ``(B, 3 K + 2)``: of each of K tags or types what was found correctly, called and
            true, and the words with the right tag, and all words. There are as many K as tags, of
            which the types are the first.
        """
        rows = []
        for one, other in zip(called.tolist(), truth.tolist(), strict=True):
            kept = [(a, b) for a, b in zip(one, other, strict=True) if b >= 0]
            right = sum(a == b for a, b in kept)
            parts = self._parts([a for a, _ in kept], [b for _, b in kept])
            unused = [0] * (len(self.names) - len(self.types))
            row = [n for part in parts for n in (*(part[k] for k in self.types), *unused)]
            rows.append([*row, right, len(kept)])
        shape = (len(rows), PARTS * len(self.names) + 2)
        return torch.tensor(rows, dtype=torch.float64).view(shape)

    def _parts(self, called: list[int], truth: list[int]) -> list[Counter[str]]:
        named = [[self.names[tag] for tag in row] for row in (called, truth)]
        if not self.entities:
            one, other = named
            hits = Counter(a for a, b in zip(one, other, strict=True) if a == b)
            return [hits, Counter(one), Counter(other)]
        found, true = (set(self._find(row)) for row in named)
        return [Counter(kind for kind, *_ in part) for part in (found & true, found, true)]


def scores_of(counts: Tensor, entities: bool) -> dict[str, Tensor]:
    """Return the scores of summed counts.

    Args:
        counts: Shape ``(..., 3 K + 2)``, as of :class:`TagCounts`.
        entities: Whether they are of entities: then precision, recall and F1 are those of all
            entities together (micro); otherwise the mean of the tags that occur (macro).

    Returns:
        ``precision``, ``recall``, ``f1`` and ``accuracy`` (of words), each of shape ``(...)``; 0
        where nothing was called or true.
    """
    hits, called, true = counts[..., :-2].unflatten(-1, (PARTS, -1)).unbind(-2)
    accuracy = counts[..., -2] / counts[..., -1].clamp(min=1)
    if entities:
        hits, called, true = (part.sum(-1, keepdim=True) for part in (hits, called, true))
    found = {
        "precision": hits / called.clamp(min=1),
        "recall": hits / true.clamp(min=1),
        "f1": 2 * hits / (called + true).clamp(min=1),
    }
    occurs = (called + true) > 0
    count = occurs.sum(-1).clamp(min=1)
    return {name: (value * occurs).sum(-1) / count for name, value in found.items()} | {
        "accuracy": accuracy
    }


def per_type_table(counts: Tensor, types: Sequence[str]) -> tuple[ClassScores, ...]:
    """Return the scores of each type of entity, or of each tag.

    Args:
        counts: Summed counts ``(3 K + 2,)``.
        types: The names of the types, which are the first of K.
    """
    parts = counts[:-2].view(PARTS, -1)[:, : len(types)]
    rows = zip(types, *parts.tolist(), strict=True)
    return tuple(
        ClassScores(
            name=name,
            precision=hits / max(called, 1),
            recall=hits / max(true, 1),
            f1=2 * hits / max(called + true, 1),
            support=int(true),
        )
        for name, hits, called, true in rows
    )


class TagScores(Metric):
    """Precision, recall and F1 of entities (or tags), and the accuracy of words.

    Args:
        num_tags: The number of tags.

    Attributes:
        entities: As for :func:`scores_of`; set when the tags are known.
        counts: The sums, ``(3 K + 2,)``, as of :class:`TagCounts`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    counts: Tensor

    def __init__(self, num_tags: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.entities = True
        zeros = torch.zeros(PARTS * num_tags + 2, dtype=torch.float32)
        self.add_state("counts", zeros, dist_reduce_fx="sum")

    def update(self, counts: Tensor) -> None:
        """Add the counts of sentences, ``(B, 3 K + 2)``."""
        self.counts = self.counts + counts.sum(0).to(self.counts)

    def compute(self) -> dict[str, Tensor]:
        """Return the scores, each in [0, 1]."""
        return scores_of(self.counts, self.entities)
