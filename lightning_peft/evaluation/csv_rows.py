"""CSV files that a spreadsheet shows and does not carry out.

A spreadsheet reads a cell that begins with ``=``, ``+``, ``-`` or ``@`` as a formula, which may
start programs. Names of classes and files come from whoever made the data.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from typing import IO

__all__ = ["RowWriter", "cell"]

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a formula begins with; the last four are wide forms, which some spreadsheets take too."""


def cell(value: object) -> object:
    """Return a value as a cell: a text that looks like a formula gets an apostrophe before it.

    What no encoding can hold, such as a byte of a file's name that is no UTF-8, is written out.

    Args:
        value: A text or a number; texts that are numbers stay as they are.
    """
    if not isinstance(value, str):
        return value
    if not value.isprintable():
        value = value.encode("utf-8", "backslashreplace").decode()
    if not value.startswith(_FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


class RowWriter:
    """Write rows of cells.

    Args:
        file: A text file, opened with ``newline=""``.
        lineterminator: The end of a row.
    """

    def __init__(self, file: IO[str], lineterminator: str = "\n") -> None:
        self._writer = csv.writer(file, lineterminator=lineterminator)

    def writerow(self, row: Iterable[object]) -> None:
        """Write a row."""
        self._writer.writerow([cell(value) for value in row])

    def writerows(self, rows: Iterable[Iterable[object]]) -> None:
        """Write several rows."""
        for row in rows:
            self.writerow(row)
