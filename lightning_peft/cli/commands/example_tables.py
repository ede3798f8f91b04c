"""Print how many tokens the examples of a language model have, and which of them are learned."""

from __future__ import annotations

from typing import Any

from lightning_peft.cli.trust.printable import printable

__all__ = ["print_examples"]

SPLITS = ("train", "val", "test")
COLUMNS = ("examples", "rows", "tokens", "learned", "cut", "dropped")
MOST_TOKENS = 400
"""The most tokens of the example that is printed."""


def print_examples(datamodule: Any, console: Any) -> None:
    """Print the counts of every split, and one training example as the model sees it.

    Args:
        datamodule: A ``ChatDataModule``, set up.
        console: Where it is printed.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("split")
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for split in SPLITS:
        if datamodule.indices[split]:
            datamodule.texts(split)
            counts = datamodule.counts[split]
            table.add_row(split, *(f"{getattr(counts, name):,}" for name in COLUMNS))
    console.print(table)
    told = Text("one of them; what is learned is between ")
    told.append("[ ]", style="bold green")
    console.print(told)
    document = datamodule.texts("train").rows[0][0]
    shown, learning = Text(), False
    for ids, learn in _runs(document.ids[:MOST_TOKENS], document.learn[:MOST_TOKENS]):
        text = printable(datamodule.tokenizer.decode(ids))
        learning = learn
        shown.append(f"[{text}]" if learning else text, style="bold green" if learning else "")
    console.print(shown)


def _runs(ids: list[int], learn: list[bool]) -> list[tuple[list[int], bool]]:
    """Return the longest stretches of tokens that are all learned, or all not."""
    found: list[tuple[list[int], bool]] = []
    for token, yes in zip(ids, learn, strict=True):
        if not found or found[-1][1] != yes:
            found.append(([], yes))
        found[-1][0].append(token)
    return found
