"""Reading a CSV file as people save them: with commas, semicolons or tabs, in a known encoding."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Sequence
from pathlib import Path

from lightning_peft.errors import DataError

__all__ = ["read_table"]

DELIMITERS = (",", ";", "\t")

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Bytes at the start of a file that say its encoding."""

_OTHERS = "cp1252 (Windows, Western Europe), cp1250, cp1251, shift_jis, gb18030"


def read_table(
    path: Path, *, key: str, encoding: str | None = None
) -> tuple[list[str], list[dict[str, str]]]:
    """Read a CSV file with a header.

    Args:
        path: The file.
        key: A column that it should have: the delimiter is the one with which it has it, otherwise
            the one that makes the most columns.
        encoding: Its encoding; None is UTF-8, or UTF-16 if it begins with the mark of that.

    Returns:
        The names of the columns, and a mapping for each line. All are stripped; a missing cell is
        ``""``.

    Raises:
        DataError: If it cannot be read, or is in another encoding.
    """
    text = _text(path, encoding)
    try:
        delimiter = _delimiter(text, key)
        reader = csv.DictReader(
            io.StringIO(text, newline=""), restkey="", restval="", strict=True, delimiter=delimiter
        )
        header = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = header
        return header, [{name: row[name].strip() for name in header} for row in reader]
    except csv.Error as error:
        raise DataError(f"Expected a CSV file of labels or texts, got {path}: {error}") from error


def _text(path: Path, encoding: str | None) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"Expected a CSV file of labels or texts, got {path}: {error}") from error
    marked = next((name for mark, name in _MARKS.items() if content.startswith(mark)), None)
    name = encoding or marked or "utf-8"
    try:
        return content.decode(name).removeprefix("\ufeff")
    except LookupError as error:
        raise DataError(
            f"Expected the name of an encoding, got encoding='{name}': such as utf-8, {_OTHERS}."
        ) from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"Expected a CSV file of labels or texts in {name.upper()}, got {path}: line {line} "
            f"has bytes that mean nothing there ({content[error.start : error.end].hex(' ')}). "
            "Save it as UTF-8, or say what it is: encoding=... (on the command line "
            f"data.encoding=...), such as {_OTHERS}."
        ) from error


def _delimiter(text: str, key: str) -> str:
    headers = {mark: _header(text, mark) for mark in DELIMITERS}
    for mark, header in headers.items():
        if key in header and (len(header) > 1 or text.strip() == key):
            return mark
    return max(DELIMITERS, key=lambda mark: len(headers[mark]))


def _header(text: str, delimiter: str) -> Sequence[str]:
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    return [name.strip() for name in next(rows, [])]
