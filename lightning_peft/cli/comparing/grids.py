"""Tables other than the main one, laid out once for the console and the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Grid", "grid_table"]


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


def grid_table(grid: Grid) -> Table:
    """Return a grid as a table for a console.

    Args:
        grid: The grid.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE_HEAD,
        title=Text(grid.title, style="table.title"),  # what is typed is no markup
        title_justify="left",
        caption=Text(grid.note, style="table.caption") if grid.note else None,
        caption_justify="left",
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column(Text(grid.header[0]), overflow="fold")
    for name in grid.header[1:]:
        # a name of several words may go on in the next line
        table.add_column(Text(name), justify="right", no_wrap=" " not in name)
    for position, row in enumerate(grid.rows):
        table.add_row(*map(Text, row), style="dim" if position in grid.faint else "")
    return table
