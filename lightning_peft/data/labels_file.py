"""Labels of images or texts in a CSV file: classes, several labels of one, or numbers."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lightning_peft.data.csv_table import read_table
from lightning_peft.data.file_names import column_hint, near_file_in
from lightning_peft.data.image_files import Label
from lightning_peft.data.split_names import SPLITS, known_splits, split_of
from lightning_peft.errors import DataError, near, shown
from lightning_peft.evaluation.metric_names import Task
from lightning_peft.evaluation.outputs import check_task

__all__ = ["SPLITS", "LabelsFile", "find_labels", "read_labels"]

FILE, SPLIT = "file", "split"
SEPARATOR = "|"
MOST_TOLD = 20


@dataclasses.dataclass(frozen=True)
class LabelsFile:
    """The content of a labels file.

    Attributes:
        path: The file.
        task: The kind of labels; two classes are ``"multiclass"`` unless ``"binary"`` was given.
        names: The classes or labels, sorted; or the columns of numbers.
        files: The images, as written in the file; or the texts.
        labels: The label of each.
        splits: ``"train"``, ``"val"`` or ``"test"`` for each; empty without such a column.
        noun: ``"images"`` or ``"texts"``.
    """

    path: Path
    task: Task
    names: tuple[str, ...]
    files: tuple[str, ...]
    labels: tuple[Label, ...]
    splits: tuple[str, ...] = ()
    noun: str = "images"


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
    root: Path | None,
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
        root: The folder of the images; None for texts.
        task: The kind of labels, instead of finding it.
        columns: The columns that hold labels; all others but ``key`` and ``split`` by default.
        key: The column of the files or texts.
        encoding: As for :func:`~lightning_peft.data.csv_table.read_table`.

    Returns:
        Its content.

    Raises:
        DataError: Listing all problems: missing columns or images, cells that are empty or not
            numbers, files that appear twice, texts that appear twice with different labels.
    """
    if task is not None:
        check_task(task)
    header, rows = read_table(path, key=key, encoding=encoding)
    problems = _header_problems(header, columns, key)
    if root is not None and key not in header:
        problems[0] += column_hint(header, rows, root)
    if not rows:
        problems.append("it has no line after the header")
    if problems:
        raise _refusal(path, problems)
    chosen = list(columns) if columns is not None else [n for n in header if n not in (key, SPLIT)]
    cells = [[row[name] for name in chosen] for row in rows]
    problems = _row_problems(rows, root, key, cells)
    found = task or _found_task(cells, chosen, path)
    if found == "regression":
        names, labels, wrong = _numbers(cells, chosen)
    elif found == "multilabel":
        names, labels, wrong = _several(cells, chosen)
    else:
        names, labels, wrong = _classes(cells, chosen, found)
    if problems + wrong:
        raise _refusal(path, problems + wrong)
    splits = tuple(str(split_of(row[SPLIT])) for row in rows) if SPLIT in header else ()
    keys = tuple(row[key] for row in rows)
    noun = "images" if root is not None else "texts"
    return LabelsFile(path, found, names, keys, tuple(labels), splits, noun)


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


def _row_problems(
    rows: Sequence[dict[str, str]],
    root: Path | None,
    key: str,
    cells: Sequence[Sequence[str]],
) -> list[str]:
    found = []
    near_file = near_file_in(root or Path())
    first: dict[str, int] = {}
    for line, row in enumerate(rows, 2):
        name = row[key]
        if not name:
            found.append(f"line {line}: no {key}")
        elif name in first and root is not None:
            found.append(f"line {line}: '{name}' is already in line {first[name]}")
        elif name in first and cells[first[name] - 2] != cells[line - 2]:
            found.append(
                f"line {line}: same text as line {first[name]}, other label: {shown(name, 40)}"
            )
        elif root is not None and _leads_out(root, name):
            found.append(f"line {line}: expected a file below {root}, got {name}")
        elif root is not None and not (root / name).is_file():
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


def _found_task(cells: Sequence[Sequence[str]], columns: Sequence[str], path: Path) -> Task:
    """Return the kind of labels, by their form."""
    values = {value for row in cells for value in row if value}
    numbers = all(_number(value) is not None for value in values) and bool(values)
    if len(columns) > 1:
        return "multilabel" if values <= {"0", "1"} else "regression"
    if not numbers:
        return "multilabel" if any(SEPARATOR in value for value in values) else "multiclass"
    if all(value.lstrip("+-").isdecimal() for value in values):
        raise DataError(
            f"Expected labels of one kind in {path}, got whole numbers in '{columns[0]}', which "
            "may be classes or amounts: set task='multiclass' or task='regression' (on the command "
            "line data.task=...)."
        )
    return "regression"


def _numbers(
    cells: Sequence[Sequence[str]], columns: Sequence[str]
) -> tuple[tuple[str, ...], list[Label], list[str]]:
    wrong = [
        f"line {line}: '{value}' in column '{name}' is not a number"
        for line, row in enumerate(cells, 2)
        for name, value in zip(columns, row, strict=True)
        if _number(value) is None
    ]
    rows = [tuple(_number(value) or 0.0 for value in row) for row in cells]
    labels: list[Label] = [row[0] if len(columns) == 1 else row for row in rows]
    return tuple(columns), labels, wrong


def _several(
    cells: Sequence[Sequence[str]], columns: Sequence[str]
) -> tuple[tuple[str, ...], list[Label], list[str]]:
    if len(columns) > 1:
        wrong = [
            f"line {line}: '{value}' in column '{name}' is neither 0 nor 1"
            for line, row in enumerate(cells, 2)
            for name, value in zip(columns, row, strict=True)
            if value not in ("0", "1")
        ]
        names = tuple(columns)
        labels: list[Label] = [tuple(float(value == "1") for value in row) for row in cells]
        return names, labels, wrong
    words = [{word.strip() for word in row[0].split(SEPARATOR)} - {""} for row in cells]
    names = tuple(sorted(set().union(*words)))
    wrong = [] if len(names) > 1 else [f"expected 2 or more labels, found {list(names)}"]
    return names, [tuple(float(name in found) for name in names) for found in words], wrong


def _classes(
    cells: Sequence[Sequence[str]], columns: Sequence[str], task: Task
) -> tuple[tuple[str, ...], list[Label], list[str]]:
    if len(columns) > 1:
        return (), [], [f"expected one column of classes, found {list(columns)}: choose one"]
    values = [row[0] for row in cells]
    names = tuple(sorted(set(values) - {""}, key=_order))
    wrong = [f"line {i}: no class" for i, value in enumerate(values, 2) if not value]
    if len(names) < 2 or (task == "binary" and len(names) != 2):
        wanted = "2 classes" if task == "binary" else "2 or more classes"
        wrong.append(f"expected {wanted}, found {', '.join(names[:MOST_TOLD]) or 'none'}")
    numbers = {name: number for number, name in enumerate(names)}
    return names, [numbers.get(value, 0) for value in values], wrong


def _order(name: str) -> tuple[float, str]:
    """Return a sort key: numbers by size, before words, so class 2 comes before class 10."""
    number = _number(name)
    return (math.inf if number is None else number), name


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _refusal(path: Path, problems: Sequence[str]) -> DataError:
    lines = [f"  {problem}" for problem in problems[:MOST_TOLD]]
    if len(problems) > MOST_TOLD:
        lines.append(f"  and {len(problems) - MOST_TOLD} more")
    listed = "\n".join(lines)
    return DataError(
        f"{path} cannot serve as labels, for {len(problems)} reason(s); correct them:\n{listed}"
    )
