"""Print what is in tagged words, or in texts with targets, before anything is trained."""

from __future__ import annotations

from collections import Counter
from typing import Any

from lightning_peft.cli.trust.printable import printable

__all__ = ["TABLES", "print_texts"]

SPLITS = ("train", "val", "test")
TABLES = ("token_classification", "seq2seq")
MOST_CHARACTERS = 400
"""The longest text that is printed in full."""


def print_texts(datamodule: Any, console: Any) -> None:
    """Print the counts of each split, and one training text with its tags or its target.

    Args:
        datamodule: A ``TextDataModule`` of one of :data:`TABLES`, set up.
        console: Where it is printed.
    """
    if datamodule.task == "seq2seq":
        _print_targets(datamodule, console)
    else:
        _print_tags(datamodule, console)


def _print_tags(datamodule: Any, console: Any) -> None:
    from rich.text import Text

    from lightning_peft.evaluation.tags import TagCounts, per_type_table

    counts = TagCounts(datamodule.class_names)
    columns: dict[str, Counter[str]] = {}
    for split in SPLITS:
        found = Counter({"texts": len(datamodule.indices[split])})
        for index in datamodule.indices[split]:
            tags = datamodule.table.labels[index]
            found["words"] += len(tags)
            found.update(_counted(counts, tags, per_type_table))
        columns[split] = found
    kind = "entities" if counts.entities else "tags"
    rows = ["texts", "words", *counts.types]
    _table(console, kind, [(name, [columns[s][name] for s in SPLITS]) for name in rows])
    if not datamodule.indices["train"]:
        return
    index = datamodule.indices["train"][0]
    shown = Text()
    pairs = zip(datamodule.table.words[index], datamodule.table.labels[index], strict=True)
    for word, tag in pairs:
        shown.append(printable(word))
        if (name := datamodule.class_names[tag]) != "O":
            shown.append(f"[{printable(name)}]", style="bold green")
        shown.append(" ")
    console.print(shown)


def _counted(counts: Any, tags: Any, table: Any) -> dict[str, int]:
    """Return how many entities of each type, or how often each tag, a text has."""
    import torch

    row = torch.tensor([list(tags)])
    return {line.name: line.support for line in table(counts(row, row)[0], counts.types)}


def _print_targets(datamodule: Any, console: Any) -> None:
    from rich.text import Text

    rows: dict[str, list[int]] = {}
    for split in SPLITS:
        found = datamodule.texts(split)
        tokens, written = found.tokens
        for name, count in (
            ("texts", len(found)),
            ("tokens of texts", tokens),
            ("tokens of targets", written),
            ("texts cut", found.cut),
            ("targets cut", found.targets_cut),
        ):
            rows.setdefault(name, []).append(count)
    _table(console, "", list(rows.items()))
    index = datamodule.indices["train"][0]
    text, target = datamodule.table.files[index], datamodule.table.labels[index]
    console.print(Text(printable((datamodule.prefix + text)[:MOST_CHARACTERS])))
    console.print(Text(printable(target[:MOST_CHARACTERS]), style="bold green"))


def _table(console: Any, first: str, rows: list[tuple[str, list[int]]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, overflow="fold")
    for split in SPLITS:
        table.add_column(split, justify="right")
    for name, counts in rows:
        table.add_row(Text(printable(name)), *(f"{count:,}" for count in counts))
    console.print(table)
