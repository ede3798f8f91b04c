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
    words: int = 1,
) -> str:
    """Return a table as HTML; every text is escaped.

    Args:
        title: The caption above the table.
        columns: The names of the columns.
        rows: The cells of each row.
        notes: Lines below the table.
        words: How many columns, from the left, hold words; the others hold numbers.

    >>> html_table("Sizes", ["part", "bytes"], [["a < b", "12"]]).count("<td")
    2
    """
    sides = ["left" if i < words else "right" for i in range(len(columns))]

    def line(tag: str, texts: Sequence[str]) -> str:
        return "".join(
            f'<{tag} style="text-align: {side}">{escape(text)}</{tag}>'
            for text, side in zip(texts, sides, strict=True)
        )

    caption = f'<caption style="text-align: left"><b>{escape(title)}</b></caption>'
    head = line("th", columns)
    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    below = "".join(f"<div>{escape(note)}</div>" for note in notes)
    return (
        f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        f'<div style="font-size: 90%">{below}</div>'
    )
