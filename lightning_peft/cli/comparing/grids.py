"""Tables other than the main one, laid out once for the console and the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning_peft.cli.comparing.fitting import longest_word

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Grid", "grid_tables"]

EDGE, GAP = 2, 2
"""The characters around a table, and between two columns."""


@dataclass(frozen=True)
class Grid:
    """Words in rows and columns.

    Attributes:
        title: What stands above it.
        header: The names of the columns; the first is of what the rows are.
        rows: The words of each row, as many as there are columns.
        note: What stands below it.
        faint: Which rows are reference points, by their positions.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    faint: frozenset[int] = frozenset()


def grid_tables(grid: Grid, width: int = 120) -> Iterator[Table]:
    """Yield a grid as tables for a console, several of them where the columns do not fit.

    Args:
        grid: The grid.
        width: The width of the console.
    """
    word = longest_word([grid.header[0], *(row[0] for row in grid.rows)])
    left = width - word - EDGE
    parts: list[list[int]] = [[]]
    for column, name in enumerate(grid.header[1:], 1):
        # a name of several words may go on in the next line
        needed = max(longest_word([name]), *(len(row[column]) for row in grid.rows), 0) + GAP
        if parts[-1] and needed > left:
            parts.append([])
            left = width - word - EDGE
        parts[-1].append(column)
        left -= needed
    for number, part in enumerate(parts, 1):
        yield _table(grid, part, word, first=number == 1, last=number == len(parts))


def _table(grid: Grid, part: Sequence[int], word: int, *, first: bool, last: bool) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE_HEAD,
        # what is typed is no markup
        title=Text(grid.title, style="table.title") if first else None,
        title_justify="left",
        caption=Text(grid.note, style="table.caption") if grid.note and last else None,
        caption_justify="left",
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column(Text(grid.header[0]), overflow="fold", min_width=word)
    for name in (grid.header[column] for column in part):
        table.add_column(Text(name), justify="right", no_wrap=" " not in name)
    for position, row in enumerate(grid.rows):
        style = "dim" if position in grid.faint else ""
        table.add_row(Text(row[0]), *(Text(row[column]) for column in part), style=style)
    return table
