"""Texts and their labels, tags or targets, out of a table of any file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_peft.data.label_kinds import SEPARATOR, found_task, order, read_cells
from lightning_peft.data.labels_file import LabelsFile
from lightning_peft.data.split_names import known_splits, split_of
from lightning_peft.data.text_tables import SPLIT, TextTable, read_table, refusal
from lightning_peft.errors import near, shown, some
from lightning_peft.evaluation.metric_names import TASKS
from lightning_peft.evaluation.outputs import check_task

__all__ = [
    "LABEL",
    "TEXT_TASKS",
    "labelled_texts",
    "read_texts",
    "table_of_lists",
    "text_of",
    "words_of",
]

TEXT_TASKS = (*TASKS, "token_classification", "seq2seq")
LABEL = "label"
"""The column of labels among others, in a file whose columns nobody chose for this."""


def read_texts(
    path: Path,
    *,
    task: str | None = None,
    columns: Sequence[str] | None = None,
    key: str = "text",
    pair: str | None = None,
    encoding: str | None = None,
) -> LabelsFile:
    """Read a file of texts with :func:`~lightning_peft.data.text_tables.read_table`.

    See there and :func:`labelled_texts` for the arguments and errors.
    """
    table = read_table(path, key, encoding)
    return labelled_texts(table, task=task, columns=columns, key=key, pair=pair)


def labelled_texts(
    table: TextTable,
    *,
    task: str | None = None,
    columns: Sequence[str] | None = None,
    key: str = "text",
    pair: str | None = None,
) -> LabelsFile:
    """Take the texts of a table, and find out the kind of their labels.

    Args:
        table: The table.
        task: One of :data:`TEXT_TASKS`; None finds it: lists of words are
            ``"token_classification"``, a list of labels is ``"multilabel"``, and the form of other
            labels says what they are; ``"seq2seq"`` has to be named.
        columns: The columns of the labels; by default ``label`` of a JSONL file or a directory that
            has it, or all that are not texts and not ``split``.
        key: The column of the texts.
        pair: The column of the second texts, if there are two.

    Returns:
        The texts and labels.

    Raises:
        DataError: Listing all problems with their lines: missing columns, empty texts, labels that
            do not fit the task, tags that are not as many as the words, texts that appear twice
            with other labels.
    """
    if task is not None:
        check_task(task, TEXT_TASKS)
    chosen = _chosen(table, columns, key, pair)
    problems = _of_columns(table, chosen, key, pair)
    if problems:
        raise refusal(table.path, problems)
    if task is None and any(_is_words(row.get(key)) for row in table.rows):
        task = "token_classification"
    tagged = task == "token_classification"
    found_as = task or ""
    if tagged and pair is not None:
        problems.append("expected one text with tagged words, got a second one: leave it out")
    if (tagged or task == "seq2seq") and len(chosen) != 1:
        what = "tags" if tagged else "targets"
        problems.append(f"expected one column of {what}, found {some(chosen)}: choose one")
        raise refusal(table.path, problems)
    problems += _of_rows(table, key, pair, tagged)
    if tagged:
        words, texts, names, labels, wrong = _tagged(table, key, chosen[0])
    else:
        words, texts = (), tuple(text_of(row.get(key)) for row in table.rows)
        found_as, names, labels, wrong = _labels(table, chosen, task)
    if problems + wrong:
        raise refusal(table.path, problems + wrong)
    splits = tuple(map(str, map(_split, table.rows))) if SPLIT in table.columns else ()
    pairs = () if pair is None else tuple(text_of(row.get(pair)) for row in table.rows)
    found = LabelsFile(table.path, found_as, names, texts, labels, splits, "texts", pairs, words)
    if found_as in TASKS and (wrong := _contradictions(found, table.places)):
        raise refusal(table.path, wrong)
    return found


def table_of_lists(
    texts: Sequence[Any], labels: Sequence[Any], splits: Sequence[str] | None, pairs: Sequence[str]
) -> TextTable:
    """Return lists as a table with the columns ``text``, ``pair``, ``label`` and ``split``."""
    columns = {"text": texts, "pair": pairs, LABEL: labels, SPLIT: splits}
    given: dict[str, Sequence[Any]] = {name: values for name, values in columns.items() if values}
    lengths = {name: len(values) for name, values in given.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{count} of {name}" for name, count in lengths.items())
        raise refusal(Path("lists"), [f"expected lists of the same length, got {told}"])
    rows = [{name: values[i] for name, values in given.items()} for i in range(len(texts))]
    return TextTable(Path("lists"), tuple(given), rows, [f"text {i}" for i in range(len(rows))])


def _chosen(
    table: TextTable, columns: Sequence[str] | None, key: str, pair: str | None
) -> list[str]:
    if columns is not None:
        return list(columns)
    if LABEL in table.columns and table.path.suffix != ".csv":
        return [LABEL]
    return [name for name in table.columns if name not in (key, pair, SPLIT)]


def _of_columns(table: TextTable, chosen: Sequence[str], key: str, pair: str | None) -> list[str]:
    where = " in its first line" if table.path.suffix == ".csv" else ""
    wanted = dict.fromkeys([key, *([] if pair is None else [pair]), *chosen])
    found = [
        f"it has no column '{name}'{where}. {near(name, table.columns)}"
        for name in wanted
        if name not in table.columns
    ]
    found += [
        f"column '{name}' appears {count} times"
        for name, count in Counter(table.columns).items()
        if count > 1
    ]
    if not chosen:
        found.append("it has no column of labels: add one, such as 'label'")
    if not table.rows:
        found.append("it has no line with a text")
    return found


def _of_rows(table: TextTable, key: str, pair: str | None, tagged: bool) -> list[str]:
    found = []
    for place, row in zip(table.places, table.rows, strict=True):
        for name in [key, *([] if pair is None else [pair])]:
            value = row.get(name)
            if name not in row:
                found.append(f"{place}: no {name}. {near(name, map(str, row))}")
            elif not tagged and value is not None and not isinstance(value, str):
                found.append(f"{place}: expected a text as {name}, got {shown(value, 40)}")
            elif not tagged and not text_of(value):
                found.append(f"{place}: no {name}")
        if SPLIT in table.columns and _split(row) is None:
            split = "" if row.get(SPLIT) is None else row[SPLIT]
            hint = near(str(split).lower(), known_splits())
            found.append(f"{place}: split {shown(split, 40)}. {hint}")
    return found


def _split(row: Mapping[str, Any]) -> str | None:
    """Return the split of a row; None if its cell means none."""
    return split_of(row[SPLIT]) if isinstance(row.get(SPLIT), str) else None


def _labels(
    table: TextTable, chosen: Sequence[str], task: str | None
) -> tuple[str, tuple[str, ...], tuple[Any, ...], list[str]]:
    """Return the task, the names and the labels of texts, and what is wrong."""
    wrong = []
    cells = []
    for place, row in zip(table.places, table.rows, strict=True):
        cells.append([_cell(row.get(name)) for name in chosen])
        wrong += [
            f"{place}: no {name}. {near(name, map(str, row))}" for name in chosen if name not in row
        ]
        wrong += [
            f"{place}: expected a label as {name}, got {shown(row[name], 40)}"
            for name, cell in zip(chosen, cells[-1], strict=True)
            if cell is None
        ]
    if wrong:
        return task or "multiclass", (), (), wrong
    texts = [[cell or "" for cell in row] for row in cells]
    if task == "seq2seq":
        wrong = [
            f"{place}: no {chosen[0]}"
            for place, row in zip(table.places, texts, strict=True)
            if not row[0]
        ]
        return task, (), tuple(row[0] for row in texts), wrong
    if task is None and any(isinstance(row[name], list) for row in table.rows for name in chosen):
        task = "multilabel"
    known: Any = task or found_task(texts, chosen, table.path)
    names, labels, wrong = read_cells(texts, chosen, table.places, known)
    return known, names, tuple(labels), wrong


def _tagged(table: TextTable, key: str, column: str) -> tuple[Any, ...]:
    """Return the words, the texts, the names of the tags, the tags, and what is wrong."""
    wrong: list[str] = []
    words, tags = [], []
    for place, row in zip(table.places, table.rows, strict=True):
        both = [words_of(row.get(name)) for name in (key, column)]
        for name, found in zip((key, column), both, strict=True):
            if name not in row:
                wrong.append(f"{place}: no {name}. {near(name, map(str, row))}")
            elif found is None or not all(found):
                what = "words" if name == key else "tags"
                wrong.append(f"{place}: expected a list of {what} as {name}, got "
                             f"{shown(row[name], 40)}")  # fmt: skip
            elif not found:
                wrong.append(f"{place}: no {name}")
        one, other = (found or () for found in both)
        if one and other and len(one) != len(other):
            wrong.append(
                f"{place}: expected a tag for each of the {len(one)} words, got {len(other)}"
            )
        words.append(tuple(one))
        tags.append(other)
    names = tuple(sorted({tag for row in tags for tag in row}, key=order))
    if len(names) < 2 and not wrong:
        wrong.append(f"expected 2 or more tags, found {', '.join(names) or 'none'}")
    numbers = {name: number for number, name in enumerate(names)}
    labels = tuple(tuple(numbers[tag] for tag in row) for row in tags)
    return tuple(words), tuple(" ".join(row) for row in words), names, labels, wrong


def _contradictions(found: LabelsFile, places: Sequence[str]) -> list[str]:
    wrong = []
    first: dict[str, int] = {}
    for index, key in enumerate(found.keys):
        one = first.setdefault(key, index)
        if found.labels[one] != found.labels[index]:
            wrong.append(
                f"{places[index]}: same text as {places[one]}, other label: {shown(key, 40)}"
            )
    return wrong


def _is_words(value: Any) -> bool:
    return isinstance(value, list | tuple)


def words_of(value: Any) -> list[str] | None:
    """Return a list of words or tags: as it is, or a text at its spaces; None if it is neither."""
    if isinstance(value, str):
        return value.split()
    if not _is_words(value) or not all(isinstance(item, str | int) for item in value):
        return None
    return [str(item).strip() for item in value]


def text_of(value: Any) -> str:
    """Return a text without spaces around it; an empty one for anything else."""
    return value.strip() if isinstance(value, str) else ""


def _cell(value: Any) -> str | None:
    """Return a value of JSON as it would stand in a CSV file; None if it could not."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool | int | float):
        return str(int(value) if isinstance(value, bool) else value)
    if _is_words(value) and all(isinstance(item, str | int) for item in value):
        return SEPARATOR.join(str(item) for item in value)
    return None
