"""Which examples of a language model are in which split, and how many tokens they have."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

from lightning_peft.data.chat_tokens import Tokenised
from lightning_peft.data.conversations import SPLITS, Example, refused
from lightning_peft.data.splits import part_of, ranked_by_class
from lightning_peft.errors import DataError

__all__ = ["ChatCounts", "counted", "divided", "without_repeats"]

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ChatCounts:
    """The counts of a split.

    Attributes:
        examples: Examples that are used.
        rows: Rows that they fill: fewer with packing.
        tokens: Tokens, without padding.
        learned: Tokens that the loss is taken on.
        cut: Examples that were longer than ``max_length``.
        cut_tokens: Tokens that were left out of them.
        dropped: Examples left out since no token of them would be learned.
    """

    examples: int
    rows: int
    tokens: int
    learned: int
    cut: int
    cut_tokens: int
    dropped: int


def counted(
    documents: Sequence[Sequence[Tokenised]], kept: Sequence[Sequence[Tokenised]], rows: int
) -> ChatCounts:
    """Count a split.

    Args:
        documents: The documents of each example.
        kept: Those of the examples that are used.
        rows: The rows that they fill.
    """
    flat = [document for row in kept for document in row]
    every = [document for row in documents for document in row]
    return ChatCounts(
        examples=len(kept),
        rows=rows,
        tokens=sum(len(document.ids) for document in flat),
        learned=sum(document.learned for document in flat),
        cut=sum(any(document.cut for document in row) for row in documents),
        cut_tokens=sum(document.cut for document in every),
        dropped=len(documents) - len(kept),
    )


def without_repeats(examples: Sequence[Example], name: str) -> list[Example]:
    """Drop repeated examples, which could otherwise be in both training and test.

    Args:
        examples: The examples.
        name: What they were read from, for the error.

    Raises:
        DataError: If the same example is in two splits.
    """
    first: dict[str, Example] = {}
    wrong = []
    for example in examples:
        before = first.setdefault(example.key, example)
        if before.split != example.split:
            wrong.append(f"{example.place}: the same as {before.place}, in another split")
    if wrong:
        raise refused(name, wrong)
    if len(first) < len(examples):
        log.warning(
            "%d of %d examples are repeats and are dropped",
            len(examples) - len(first), len(examples),
        )  # fmt: skip
    return list(first.values())


def divided(
    examples: Sequence[Example], test_fraction: float, val_fraction: float, seed: int
) -> dict[str, list[int]]:
    """Return the indices of the examples of each split.

    Args:
        examples: The examples, each once.
        test_fraction: The part for the test, if they name no split.
        val_fraction: The part of the others for validation.
        seed: Chooses the validation examples.

    Raises:
        DataError: If none is left for training.
    """
    if examples[0].split is not None:
        found = {s: [i for i, e in enumerate(examples) if e.split == s] for s in SPLITS}
    else:
        keys = [example.key for example in examples]
        (ranked,) = ranked_by_class([0] * len(keys), keys, "lightning-peft chat test").values()
        count = part_of(test_fraction, ranked)
        test, pool = ranked[:count], sorted(ranked[count:])
        order = ranked_by_class([0] * len(pool), [keys[i] for i in pool], str(seed)).get(0, [])
        ranked = [pool[i] for i in order]
        count = part_of(val_fraction, ranked)
        found = {"train": ranked[count:], "val": ranked[:count], "test": test}
    if not found["train"]:
        raise DataError(
            f"Expected training examples, got {len(examples)} examples of which "
            f"{len(found['val'])} are for validation and {len(found['test'])} for the test. Add "
            "some, or set val_fraction and test_fraction to 0."
        )
    return {split: sorted(indices) for split, indices in found.items()}
