"""Tagged words as tokens: a tag for the first token of each word, none for the others."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from lightning_peft.data.sampling import Draw
from lightning_peft.errors import DataError, require

__all__ = ["TaggedWords", "WordTokens", "for_words"]

IGNORED = -100
"""The label of a token that has no tag, as everywhere in transformers."""


class WordTokens:
    """The tokens of texts that are lists of words, without padding.

    Args:
        tokenizer: A fast tokeniser of transformers, which knows the word of each token.
        words: The words of each text.
        max_length: The largest number of tokens, including special ones; the words after them are
            cut off.

    Attributes:
        firsts: Where the first token of each word is, for each text; of words that were cut off
            there is none.
        cut: The number of texts that were cut.
        longest: The most tokens of a text.
        largest: The largest token.

    Raises:
        DataError: If the tokeniser does not know the words of its tokens.
    """

    def __init__(self, tokenizer: Any, words: Sequence[Sequence[str]], max_length: int) -> None:
        collator = require("transformers", "text").DataCollatorForTokenClassification
        self._pad = collator(tokenizer, label_pad_token_id=IGNORED)
        found: Any = {}
        if words:
            found = tokenizer(
                [list(row) for row in words],
                is_split_into_words=True,
                truncation=True,
                max_length=max_length,
            )
        self._columns: dict[str, list[list[int]]] = {name: found[name] for name in found}
        ids = self._columns.get("input_ids", [])
        self.longest = max(map(len, ids), default=0)
        self.largest = max((max(row) for row in ids if row), default=0)
        self.firsts = [_firsts(found.word_ids(i)) for i in range(len(words))]
        self.cut = sum(bool(e.overflowing) for e in getattr(found, "encodings", None) or ())

    def padded(
        self, indices: Iterable[int], tags: Sequence[Sequence[int]] | None = None
    ) -> dict[str, Tensor]:
        """Return tensors ``(B, T)`` of some texts, with ``labels`` if their tags are given."""
        rows = []
        for place, i in enumerate(indices):
            row = {name: list(column[i]) for name, column in self._columns.items()}
            if tags is not None:
                row["labels"] = [IGNORED] * len(row["input_ids"])
                for word, token in self.firsts[i].items():
                    row["labels"][token] = tags[place][word]
            rows.append(row)
        return dict(self._pad(rows))


class TaggedWords(Dataset[tuple[dict[str, Tensor], Tensor]]):
    """Tokens and the tags of their words, returned as whole batches.

    Args:
        tokens: The texts.
        tags: The tags of the words of each, by number.

    Attributes:
        labels: The tags.
    """

    def __init__(self, tokens: WordTokens, tags: Sequence[Sequence[int]]) -> None:
        self.tokens = tokens
        self.labels = list(tags)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int | Draw) -> tuple[dict[str, Tensor], Tensor]:
        inputs, labels = self.__getitems__([index])
        return {name: value[0] for name, value in inputs.items()}, labels[0]

    def __getitems__(self, indices: Sequence[int | Draw]) -> tuple[dict[str, Tensor], Tensor]:
        chosen = [index.image if isinstance(index, Draw) else index for index in indices]
        batch = self.tokens.padded(chosen, [self.labels[i] for i in chosen])
        labels = batch.pop("labels")
        return batch, labels


def for_words(tokenizer: Any) -> Any:
    """Return a tokeniser that begins every word of a list as a word.

    One over bytes writes a word at the beginning without a space, and would take every word of a
    list for one at the beginning.

    Args:
        tokenizer: A tokeniser of transformers; it is not changed.

    Raises:
        DataError: If it does not know which word a token is of.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(
            "Expected a fast tokeniser (of the library tokenizers), which knows the word of each "
            f"token, got {type(tokenizer).__name__}. Load it with AutoTokenizer, or choose a model "
            "that has one."
        )
    before: Any = tokenizer.backend_tokenizer.pre_tokenizer
    if type(before).__name__ != "ByteLevel" or before.add_prefix_space:
        return tokenizer
    found = copy.deepcopy(tokenizer)
    found.add_prefix_space = True
    before = found.backend_tokenizer.pre_tokenizer
    before.add_prefix_space = True
    found.backend_tokenizer.pre_tokenizer = before
    return found


def _firsts(words: Sequence[int | None]) -> dict[int, int]:
    """Return the first token of each word."""
    found: dict[int, int] = {}
    for token, word in enumerate(words):
        if word is not None:
            found.setdefault(word, token)
    return found
