"""What to predict, in a file that may have labels or not: texts, pairs, words, names of images."""

from __future__ import annotations

from pathlib import Path

from lightning_peft.data.labelled_texts import text_of, words_of
from lightning_peft.data.text_tables import TextTable, read_table, refusal
from lightning_peft.errors import near, shown

__all__ = ["read_columns", "read_words"]


def read_columns(
    path: Path, column: str, pair: str | None = None, encoding: str | None = None
) -> list[str] | list[list[str]]:
    """Read a column of texts or of names of files, or two columns.

    Args:
        path: A file or directory, as for :func:`~lightning_peft.data.text_tables.read_table`.
        column: The column of the texts.
        pair: The column of the second texts, if there are two.
        encoding: The encoding of a CSV file, as there.

    Returns:
        The texts, or a list of both for each.

    Raises:
        DataError: If a column is missing or has empty cells; all are listed.
    """
    table = read_table(path, column, encoding)
    wanted = [column, *([] if pair is None else [pair])]
    _check_columns(table, wanted)
    wrong = [
        f"{place}: no {name}"
        for place, row in zip(table.places, table.rows, strict=True)
        for name in wanted
        if not text_of(row.get(name))
    ]
    if wrong:
        raise refusal(path, wrong, _what(wanted))
    if pair is None:
        return [text_of(row[column]) for row in table.rows]
    return [[text_of(row[name]) for name in wanted] for row in table.rows]


def read_words(path: Path, column: str, encoding: str | None = None) -> list[list[str]]:
    """Read a column of lists of words; a text is taken at its spaces.

    Raises:
        DataError: If the column is missing, or a row has no words; all are listed.
    """
    table = read_table(path, column, encoding)
    _check_columns(table, [column])
    found = [words_of(row.get(column)) for row in table.rows]
    wrong = [
        f"{place}: expected a list of words as {column}, got {shown(row.get(column), 40)}"
        for place, row, words in zip(table.places, table.rows, found, strict=True)
        if not words or not all(words)
    ]
    if wrong:
        raise refusal(path, wrong, _what([column]))
    return [words or [] for words in found]


def _check_columns(table: TextTable, wanted: list[str]) -> None:
    where = " in its first line" if table.path.suffix in (".csv", ".tsv") else ""
    wrong = [
        f"it has no column '{name}'{where}. {near(name, table.columns)}"
        for name in wanted
        if name not in table.columns
    ]
    if not wrong and not table.rows:
        wrong.append("it has no line after the header" if where else "it has no row")
    if wrong:
        raise refusal(table.path, wrong, _what(wanted))


def _what(wanted: list[str]) -> str:
    return f"a column '{wanted[0]}'" if len(wanted) == 1 else "pairs of texts"
