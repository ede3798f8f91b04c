"""Tables of texts in the files that people have: CSV, JSONL, CoNLL, a directory of `datasets`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_peft.data import csv_table
from lightning_peft.data.conversations import refused, rows_of
from lightning_peft.data.split_names import known_splits, split_of
from lightning_peft.errors import DataError, near, require

__all__ = ["SPLIT", "SUFFIXES", "TextTable", "is_saved", "read_table", "refusal"]

SPLIT = "split"

JSON = (".jsonl", ".ndjson")
CONLL = (".conll", ".bio", ".iob")
SUFFIXES = (".csv", ".tsv", *JSON, *CONLL)
PARTS = ("state.json", "dataset_dict.json")
"""One of these is in a directory that `datasets` has saved."""


@dataclass(frozen=True)
class TextTable:
    """The rows of a file.

    Attributes:
        path: The file or directory.
        columns: The names of its columns.
        rows: The values of each row, by column; a row of a JSONL file may lack some.
        places: Where each row is, such as ``"line 3"``, for messages.
    """

    path: Path
    columns: tuple[str, ...]
    rows: Sequence[dict[str, Any]]
    places: Sequence[str]


def read_table(path: Path, column: str = "", encoding: str | None = None) -> TextTable:
    """Read a table of texts.

    Args:
        path: A CSV file with a header (with commas, semicolons or tabs); a JSONL file, with an
            object on every line; a CoNLL file (``.conll``, ``.bio``, ``.iob``), with a word and its
            tag on every line and an empty line after each sentence, whose columns are ``tokens``
            and ``tags``; or a directory that ``save_to_disk`` of `datasets` has written, whose
            splits become the column ``split`` and whose class numbers become names.
        column: A column that it should have, which tells what separates the columns of a CSV file.
        encoding: The encoding of a CSV file; None is UTF-8, or UTF-16 if it begins with the mark of
            that. All others are in UTF-8.

    Returns:
        Its rows.

    Raises:
        DataError: If there is no such file, or listing all lines that cannot be read.
        MissingExtraError: For a directory, if `datasets` is not installed.
    """
    if is_saved(path):
        return _saved(path)
    if not path.is_file():
        folder = path if path.is_dir() else path.parent
        beside = [f.name for f in folder.glob("*") if f.suffix in SUFFIXES]
        raise DataError(
            "Expected a CSV file of texts and labels, a JSONL or CoNLL file, or a directory of "
            f"`datasets`, got {path}, which is not one. {near(path.name, beside)}"
        )
    if path.suffix in JSON:
        return _lines(path)
    if path.suffix in CONLL:
        return _sentences(path)
    return _csv(path, column, encoding)


def is_saved(path: Path) -> bool:
    """Whether a path is a directory that `datasets` has saved."""
    return path.is_dir() and any((path / name).is_file() for name in PARTS)


def refusal(
    path: Path, problems: Sequence[str], what: str = "labelled texts", beginning: str = ""
) -> DataError:
    """Return the error that lists the problems of a table, in the order of its lines."""
    return refused(f"{beginning}{path}", problems, what)


def _csv(path: Path, column: str, encoding: str | None) -> TextTable:
    header, rows = csv_table.read_table(path, key=column, encoding=encoding)
    places = [f"line {number}" for number in range(2, len(rows) + 2)]
    return TextTable(path, tuple(header), rows, places)


def _lines(path: Path) -> TextTable:
    found, problems = rows_of(path)
    problems += [
        f"{place}: expected a JSON object, got {type(row).__name__}"
        for place, row in found
        if not isinstance(row, dict)
    ]
    if problems:
        raise refusal(path, problems)
    columns = dict.fromkeys(str(key) for _, row in found for key in row)
    return TextTable(path, tuple(columns), [row for _, row in found], [p for p, _ in found])


def _sentences(path: Path) -> TextTable:
    rows: list[dict[str, Any]] = []
    places, problems = [], []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"Expected a CoNLL file in UTF-8, got {path}: {error}") from error
    for first, block in _blocks(lines):
        cells = [line.split() for line in block]
        if cells[0][0] == "-DOCSTART-":
            continue
        problems += [
            f"line {first + i}: expected a word and its tag, got {block[i]!r:.60}"
            for i, row in enumerate(cells)
            if len(row) < 2
        ]
        rows.append({"tokens": [row[0] for row in cells], "tags": [row[-1] for row in cells]})
        places.append(f"line {first}")
    if problems:
        raise refusal(path, problems)
    return TextTable(path, ("tokens", "tags"), rows, places)


def _blocks(lines: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the lines between empty ones, and the number of the first."""
    block: list[str] = []
    for number, line in enumerate([*lines, ""], 1):
        if line.strip():
            block.append(line)
        elif block:
            yield number - len(block), block
            block = []


def _saved(path: Path) -> TextTable:
    datasets = require("datasets", "datasets")
    try:
        found = datasets.load_from_disk(str(path))
    except Exception as error:  # a damaged file makes pyarrow raise anything
        raise DataError(
            f"Expected a directory that save_to_disk of `datasets` wrote, got {path}: "
            f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
        ) from error
    parts = dict(found) if isinstance(found, datasets.DatasetDict) else {None: found}
    splits = {name: None if name is None else split_of(name) for name in parts}
    unknown = sorted(name for name, split in splits.items() if name is not None and split is None)
    if unknown:
        raise DataError(
            f"Expected the splits train, validation and test in {path}, got {unknown[0]!r}. "
            f"{near(unknown[0], known_splits())} Rename or remove it."
        )
    rows: list[dict[str, Any]] = []
    places: list[str] = []
    columns: dict[str, None] = {}
    for name, part in parts.items():
        beside = {} if name is None else {SPLIT: splits[name]}
        columns |= dict.fromkeys((*part.column_names, *beside))
        named = {key: _names(feature) for key, feature in part.features.items()}
        for index, row in enumerate(part):
            rows.append({k: _called(v, named[k]) for k, v in row.items()} | beside)
            places.append(f"row {index}" if name is None else f"{name} row {index}")
    return TextTable(path, tuple(columns), rows, places)


def _names(feature: Any) -> Sequence[str] | None:
    """Return the names of the classes of a feature, or of a list of them."""
    found: Sequence[str] | None = getattr(getattr(feature, "feature", feature), "names", None)
    return found


def _called(value: Any, names: Sequence[str] | None) -> Any:
    """Return a value with names instead of the numbers of classes; -1 stands for no label."""
    if names is None or value is None:
        return value
    if isinstance(value, list):
        return [_called(item, names) for item in value]
    return names[value] if value >= 0 else ""
