"""What the site does to single pages."""

from __future__ import annotations

import re
from typing import Any

CELL = re.compile(r"<td.*?</td>", flags=re.S)

WIDE = {"methods.md", "matrix.md", "wild.md", "peft.md", "states.md", "traps.md"}
"""Pages of tables, which need the room of the table of contents."""


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Leave the table of contents out of pages that are wide."""
    if page.file.src_uri in WIDE:
        page.meta["hide"] = ["toc"]
    return markdown


def on_page_content(html: str, **_: Any) -> str:
    """Write a bar in a cell as a bar: it is escaped in the source, as GitHub wants it."""
    return CELL.sub(lambda cell: cell[0].replace("\\|", "|"), html)
