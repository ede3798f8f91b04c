"""Tables that fit the console: columns are left out before a name is broken or a number cut off."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["fitted", "left_out", "longest_word"]

Build = Callable[[Sequence[str], int | None], "Table"]
"""Builds a table with the named columns; the number is the width of its first column."""


def longest_word(texts: Iterable[str]) -> int:
    """Return the length of the longest word, which is what a column of names needs at least."""
    return max((len(word) for text in texts for word in text.split()), default=1)


def fitted(
    build: Build, columns: Sequence[str], spare: Sequence[str], word: int, width: int
) -> tuple[Table, list[str]]:
    """Return a table with as many of its columns as fit.

    Args:
        build: Builds the table.
        columns: All columns after the first.
        spare: Those that may be left out, the first to go first.
        word: The length of the longest word in the first column.
        width: The width of the console.

    Returns:
        The table, and the columns that it lacks.
    """
    shown = list(columns)
    for name in [*spare, None]:
        if name is None or _width(build(shown, word)) <= width:
            break
        shown.remove(name)
    return build(shown, None), [name for name in columns if name not in shown]


def left_out(names: Sequence[str], where: str) -> str:
    """Return a note about columns that did not fit; ``""`` if all did.

    Args:
        names: The columns.
        where: A file that has all of them.
    """
    return f"no room here for {', '.join(names)}: {where} has all columns" if names else ""


def _width(table: Table) -> int:
    from rich.console import Console

    console = Console(width=10_000, file=io.StringIO(), color_system=None)
    table.caption = table.title = None
    with console.capture() as capture:
        console.print(table)
    return max(len(line.rstrip()) for line in capture.get().splitlines())
