"""Labels of images in a CSV file: classes, several labels of one, or numbers."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_peft.data.csv_table import read_table
from lightning_peft.data.file_names import column_hint, near_file_in
from lightning_peft.data.label_kinds import MOST_TOLD, found_task, read_cells
from lightning_peft.data.split_names import SPLITS, known_splits, split_of
from lightning_peft.errors import DataError, near
from lightning_peft.evaluation.metric_names import Task
from lightning_peft.evaluation.outputs import check_task

__all__ = ["SPLITS", "LabelsFile", "find_labels", "read_labels"]

FILE, SPLIT = "file", "split"
KEPT = ("path", "task", "names", "noun")
"""The fields of a table that are no lists of its items."""


@dataclasses.dataclass(frozen=True)
class LabelsFile:
    """The content of a labels file.

    Attributes:
        path: The file.
        task: The kind of labels; two classes are ``"multiclass"`` unless ``"binary"`` was given.
        names: The classes, labels or tags, sorted; or the columns of numbers.
        files: The images, as written in the file; or the texts.
        labels: The label of each; of words the tag of each, and of ``"seq2seq"`` the target.
        splits: ``"train"``, ``"val"`` or ``"test"`` for each; empty without such a column.
        noun: ``"images"`` or ``"texts"``.
        pairs: The second text of each; empty if there is one text.
        words: The words of each text, if these are tagged.
    """

    path: Path
    task: str
    names: tuple[str, ...]
    files: tuple[str, ...]
    labels: tuple[Any, ...]
    splits: tuple[str, ...] = ()
    noun: str = "images"
    pairs: tuple[str, ...] = ()
    words: tuple[tuple[str, ...], ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """A string for each item that two of them share if and only if they are the same."""
        if not self.pairs:
            return self.files
        return tuple(f"{a}\0{b}" for a, b in zip(self.files, self.pairs, strict=True))

    def chosen(self, indices: Sequence[int]) -> LabelsFile:
        """Return the table of some items."""
        names = [f.name for f in dataclasses.fields(self) if f.name not in KEPT]
        parts: dict[str, Any] = {
            name: tuple(getattr(self, name)[i] for i in indices)
            for name in names
            if getattr(self, name)
        }
        return dataclasses.replace(self, **parts)


def find_labels(labels: str | Path, root: Path) -> Path:
    """Find a labels file, at the given path or below the folder of images.

    Raises:
        DataError: If it is in neither place.
    """
    places = [Path(labels), root / labels]
    for place in places:
        if place.is_file():
            return place
    beside = [path.name for path in root.glob("*.csv")] if root.is_dir() else []
    raise DataError(
        f"Expected a labels file at {places[0]} or {places[1]}, got none. "
        f"{near(Path(labels).name, beside)}"
    )


def read_labels(
    path: Path,
    root: Path,
    *,
    task: Task | None = None,
    columns: Sequence[str] | None = None,
    key: str = FILE,
    encoding: str | None = None,
) -> LabelsFile:
    """Read a labels file, and find out the kind of its labels.

    Commas, semicolons or tabs separate its columns. It has a header with ``file`` (paths below
    ``root``), optionally ``split`` (``train``, ``val``, ``test``, and what else such folders are
    called), and labels: one column of words is classes; one column in which ``|`` separates words
    is several labels an image (an empty cell is none); several columns of 0 and 1 are the same;
    one or several columns of numbers are regression. One column of whole numbers may be either:
    ``task`` has to say which.

    Args:
        path: The file.
        root: The folder of the images.
        task: The kind of labels, instead of finding it.
        columns: The columns that hold labels; all others but ``key`` and ``split`` by default.
        key: The column of the files.
        encoding: As for :func:`~lightning_peft.data.csv_table.read_table`.

    Returns:
        Its content.

    Raises:
        DataError: Listing all problems: missing columns or images, cells that are empty or not
            numbers, files that appear twice.
    """
    if task is not None:
        check_task(task)
    header, rows = read_table(path, key=key, encoding=encoding)
    problems = _header_problems(header, columns, key)
    if key not in header:
        problems[0] += column_hint(header, rows, root)
    if not rows:
        problems.append("it has no line after the header")
    if problems:
        raise _refusal(path, problems)
    chosen = list(columns) if columns is not None else [n for n in header if n not in (key, SPLIT)]
    cells = [[row[name] for name in chosen] for row in rows]
    problems = _row_problems(rows, root, key)
    found = task or found_task(cells, chosen, path)
    places = [f"line {number}" for number in range(2, len(rows) + 2)]
    names, labels, wrong = read_cells(cells, chosen, places, found)
    if problems + wrong:
        raise _refusal(path, problems + wrong)
    splits = tuple(str(split_of(row[SPLIT])) for row in rows) if SPLIT in header else ()
    files = tuple(row[key] for row in rows)
    return LabelsFile(path, found, names, files, tuple(labels), splits)


def _header_problems(header: Sequence[str], columns: Sequence[str] | None, key: str) -> list[str]:
    found = []
    if key not in header:
        found.append(f"it has no column '{key}' in its first line. {near(key, header)}")
    found += [
        f"column '{name}' appears {count} times"
        for name, count in Counter(header).items()
        if count > 1
    ]
    found += [
        f"it has no column '{name}'. {near(name, header)}"
        for name in columns or ()
        if name not in header
    ]
    if not set(header) - {key, SPLIT} or (columns is not None and not columns):
        found.append("it has no column of labels: add one, such as 'label'")
    return found


def _row_problems(rows: Sequence[dict[str, str]], root: Path, key: str) -> list[str]:
    found = []
    near_file = near_file_in(root)
    first: dict[str, int] = {}
    for line, row in enumerate(rows, 2):
        name = row[key]
        if not name:
            found.append(f"line {line}: no {key}")
        elif name in first:
            found.append(f"line {line}: '{name}' is already in line {first[name]}")
        elif _leads_out(root, name):
            found.append(f"line {line}: expected a file below {root}, got {name}")
        elif not (root / name).is_file():
            found.append(f"line {line}: missing file {root / name}{near_file(name)}")
        first.setdefault(name, line)
        split = row.get(SPLIT, SPLITS[0])
        if split_of(split) is None:
            found.append(f"line {line}: split '{split}'. {near(split.lower(), known_splits())}")
    return found


def _leads_out(root: Path, name: str) -> bool:
    """Whether a name leads out of a folder; a link in the folder was put there by its owner."""
    top = os.path.abspath(root)
    return os.path.commonpath([top, os.path.abspath(os.path.join(top, name))]) != top


def _refusal(path: Path, problems: Sequence[str]) -> DataError:
    lines = [f"  {problem}" for problem in problems[:MOST_TOLD]]
    if len(problems) > MOST_TOLD:
        lines.append(f"  and {len(problems) - MOST_TOLD} more")
    listed = "\n".join(lines)
    return DataError(
        f"{path} cannot serve as labels, for {len(problems)} reason(s); correct them:\n{listed}"
    )
