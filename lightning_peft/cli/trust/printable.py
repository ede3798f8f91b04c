"""Texts of other people, as a terminal may show them."""

from __future__ import annotations

import unicodedata

__all__ = ["printable"]

HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Characters that move the cursor, change colours, turn the direction of writing or break lines."""


def printable(text: str) -> str:
    r"""Return a text with its control characters written out.

    Args:
        text: A name of a class, a file, a method; one line.

    >>> print(printable("lo\x1b[2Jra"))
    lo\x1b[2Jra
    """
    if text.isprintable():
        return text
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in HIDDEN else c
        for c in text
    )
