"""Labels in the cells of a table: classes, several labels of one item, or numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from lightning_peft.data.image_files import Label
from lightning_peft.errors import DataError
from lightning_peft.evaluation.metric_names import Task

__all__ = ["MOST_TOLD", "SEPARATOR", "found_task", "order", "read_cells"]

SEPARATOR = "|"
MOST_TOLD = 20

Cells = Sequence[Sequence[str]]
Kind = tuple[tuple[str, ...], list[Label], list[str]]


def read_cells(cells: Cells, columns: Sequence[str], places: Sequence[str], task: Task) -> Kind:
    """Read the labels of a task.

    Args:
        cells: The cells of each row, a cell for each column.
        columns: The names of the columns.
        places: Where each row is, for messages.
        task: The task.

    Returns:
        The names of the classes, labels or numbers; the label of each row; and what is wrong.
    """
    if task == "regression":
        return _numbers(cells, columns, places)
    if task == "multilabel":
        return _several(cells, columns, places)
    return _classes(cells, columns, places, task)


def found_task(cells: Cells, columns: Sequence[str], path: Path) -> Task:
    """Return the kind of labels, by their form.

    Raises:
        DataError: If they may be of two kinds.
    """
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


def _numbers(cells: Cells, columns: Sequence[str], places: Sequence[str]) -> Kind:
    wrong = [
        f"{place}: '{value}' in column '{name}' is not a number"
        for place, row in zip(places, cells, strict=True)
        for name, value in zip(columns, row, strict=True)
        if _number(value) is None
    ]
    rows = [tuple(_number(value) or 0.0 for value in row) for row in cells]
    labels: list[Label] = [row[0] if len(columns) == 1 else row for row in rows]
    return tuple(columns), labels, wrong


def _several(cells: Cells, columns: Sequence[str], places: Sequence[str]) -> Kind:
    if len(columns) > 1:
        wrong = [
            f"{place}: '{value}' in column '{name}' is neither 0 nor 1"
            for place, row in zip(places, cells, strict=True)
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


def _classes(cells: Cells, columns: Sequence[str], places: Sequence[str], task: Task) -> Kind:
    if len(columns) > 1:
        return (), [], [f"expected one column of classes, found {list(columns)}: choose one"]
    values = [row[0] for row in cells]
    names = tuple(sorted(set(values) - {""}, key=order))
    wrong = [f"{p}: no class" for p, value in zip(places, values, strict=True) if not value]
    if len(names) < 2 or (task == "binary" and len(names) != 2):
        wanted = "2 classes" if task == "binary" else "2 or more classes"
        wrong.append(f"expected {wanted}, found {', '.join(names[:MOST_TOLD]) or 'none'}")
    numbers = {name: number for number, name in enumerate(names)}
    return names, [numbers.get(value, 0) for value in values], wrong


def order(name: str) -> tuple[float, str]:
    """Return a sort key: numbers by size, before words, so class 2 comes before class 10."""
    number = _number(name)
    return (math.inf if number is None else number), name


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
