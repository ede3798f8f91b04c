"""Write a table as HTML, which a notebook shows in its own style."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["html_table"]


def html_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    notes: Iterable[str] = (),
) -> str:
    """Return a table as HTML; every text is escaped.

    Args:
        title: The caption above the table.
        columns: The names of the columns. The first holds words, the others numbers.
        rows: The cells of each row.
        notes: Lines below the table.

    >>> html_table("Sizes", ["part", "bytes"], [["a < b", "12"]]).count("<td")
    2
    """
    caption = f'<caption style="text-align: left"><b>{escape(title)}</b></caption>'
    head = "".join(f"<th{_side(i)}>{escape(name)}</th>" for i, name in enumerate(columns))
    body = "".join(
        "<tr>" + "".join(f"<td{_side(i)}>{escape(c)}</td>" for i, c in enumerate(row)) + "</tr>"
        for row in rows
    )
    below = "".join(f"<div>{escape(note)}</div>" for note in notes)
    return (
        f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        f'<div style="font-size: 90%">{below}</div>'
    )


def _side(column: int) -> str:
    return f' style="text-align: {"right" if column else "left"}"'
