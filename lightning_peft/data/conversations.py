"""Examples for language models in a JSONL or CSV file: messages, prompts and answers, plain texts.

Every line stands for one example, and says by its keys what it is:

| keys | example |
|---|---|
| ``messages`` | a conversation: a list of ``{"role": ..., "content": ...}`` |
| ``prompt``, ``completion`` | a text and how it goes on, or two lists of messages |
| ``prompt``, ``chosen``, ``rejected`` | a prompt, a better and a worse answer |
| ``text`` | a plain text |

``split`` (``train``, ``val``, ``test``) and, for messages, ``tools`` may stand beside them.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning_peft.errors import DataError, near, shown, some

__all__ = [
    "KINDS",
    "Example",
    "Kind",
    "examples_of",
    "listed_examples",
    "read_examples",
    "refused",
    "rows_of",
]

Kind = Literal["messages", "completion", "preference", "text"]

KINDS: dict[Kind, tuple[str, ...]] = {
    "messages": ("messages",),
    "preference": ("prompt", "chosen", "rejected"),
    "completion": ("prompt", "completion"),
    "text": ("text",),
}
"""The keys of each kind."""

SPLITS = ("train", "val", "test")
BESIDE = ("split", "tools")
MOST_TOLD = 20
NUMBER = re.compile(r"(?:line|example) (\d+)")
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv")


@dataclass(frozen=True)
class Example:
    """One example.

    Attributes:
        kind: What it is.
        values: Its texts or messages, by the keys of its kind, and ``tools`` if it has them.
        place: The line of the file, or the number in a list, for messages about it.
        split: The split that it names; ``None`` if it names none.
    """

    kind: Kind
    values: Mapping[str, Any]
    place: str
    split: str | None = None

    @property
    def key(self) -> str:
        """A string that two examples share if and only if they are the same."""
        return json.dumps(self.values, sort_keys=True, ensure_ascii=False)


def read_examples(path: Path) -> list[Example]:
    """Read a file of examples.

    Args:
        path: A JSONL file, with an object on every line, or a CSV file with a header; in UTF-8.

    Returns:
        The examples, in the order of the file.

    Raises:
        DataError: If there is no such file, or listing all problems with their lines: empty and
            broken lines, missing keys, messages without a role or content.
    """
    rows, problems = rows_of(path)
    return examples_of(rows, str(path), problems)


def rows_of(path: Path) -> tuple[list[tuple[str, Any]], list[str]]:
    """Return the lines of a JSONL or CSV file, not checked, with their places; and problems.

    Args:
        path: The file.

    Raises:
        DataError: If there is no such file, or it is of another kind.
    """
    if not path.is_file():
        folder = path if path.is_dir() else path.parent
        found = [f.name for f in folder.glob("*") if f.suffix in SUFFIXES]
        raise DataError(
            f"Expected a JSONL or CSV file of examples, got {path}, which is not one. "
            f"{near(path.name, found)}"
        )
    if path.suffix not in SUFFIXES:
        raise DataError(
            f"Expected a file that ends with .jsonl or .csv, got {path}. Rename it if it is one."
        )
    problems: list[str] = []
    rows = _csv_rows(path) if path.suffix == ".csv" else _json_rows(path, problems)
    return list(rows), problems


def listed_examples(records: Sequence[Any]) -> list[Example]:
    """Take examples from a list instead of a file.

    Args:
        records: A mapping for each, with the keys of a line.

    Raises:
        DataError: Listing all problems.
    """
    return examples_of([(f"example {i}", row) for i, row in enumerate(records)], "records", [])


def examples_of(
    rows: Iterable[tuple[str, Any]], name: str, problems: Sequence[str]
) -> list[Example]:
    """Check rows and turn them into examples.

    Args:
        rows: The place of each, such as ``"line 3"``, and its content.
        name: What they were read from.
        problems: Problems that were found before.

    Raises:
        DataError: Listing all problems.
    """
    problems = list(problems)
    found = []
    for place, row in rows:
        example = _example(place, row, problems)
        if example is not None:
            found.append(example)
    named = sum(example.split is not None for example in found)
    if 0 < named < len(found):
        first = next(e.place for e in found if e.split is None)
        problems.append(f"{first}: no split, although others have one")
    preferences = sum(example.kind == "preference" for example in found)
    if 0 < preferences < len(found):
        first = next(e.place for e in found if e.kind != "preference")
        problems.append(
            f"{first}: no chosen and rejected, although others have them: expected either pairs "
            "of answers or examples to learn from"
        )
    if not found and not problems:
        problems.append("it has no example")
    if problems:
        raise refused(name, problems)
    return found


def refused(
    name: str, problems: Sequence[str], what: str = "examples for a language model"
) -> DataError:
    """Return the error that lists the problems of a file, in the order of its lines."""
    problems = sorted(problems, key=lambda told: int((NUMBER.match(told) or [0, 0])[1]))
    told = "\n".join(f"  {problem}" for problem in problems[:MOST_TOLD])
    if len(problems) > MOST_TOLD:
        told += f"\n  and {len(problems) - MOST_TOLD} more"
    return DataError(
        f"{name} cannot serve as {what}, for {len(problems)} reason(s); correct them:\n{told}"
    )


def _json_rows(path: Path, problems: list[str]) -> Iterator[tuple[str, Any]]:
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if content.lstrip().startswith(b"["):
        problems.append(
            "line 1: expected one JSON object on every line (JSONL), got the beginning of a list"
        )
        return
    lines = content.split(b"\n")
    if lines and not lines[-1].strip():
        lines.pop()  # the file ends with the end of a line
    for number, line in enumerate(lines, 1):
        if not line.strip():
            problems.append(f"line {number}: expected a JSON object, got an empty line")
            continue
        try:
            yield f"line {number}", json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            problems.append(
                f"line {number}: expected UTF-8, got byte {error.start}: {error.reason}"
            )
        except (ValueError, RecursionError) as error:
            told = str(error) or type(error).__name__
            problems.append(f"line {number}: expected a JSON object, got broken JSON ({told})")


def _csv_rows(path: Path) -> Iterator[tuple[str, Any]]:
    rows = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey="", strict=True)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            for row in reader:
                place = f"line {reader.line_num}"
                rows.append((place, {k: _cell(k, v) for k, v in row.items() if v is not None}))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"Expected a CSV file in UTF-8, got {path}: {error}") from error
    yield from rows


def _cell(column: str, value: Any) -> Any:
    """Return a cell; messages are written as JSON."""
    if column in ("messages", "tools") or (isinstance(value, str) and value.startswith('[{"')):
        try:
            return json.loads(value)
        except (TypeError, ValueError):
            return value
    return value


def _example(place: str, row: Any, problems: list[str]) -> Example | None:
    if not isinstance(row, Mapping):
        problems.append(f"{place}: expected an object with keys, got {shown(row, 40)}")
        return None
    kind = next((k for k, keys in KINDS.items() if all(key in row for key in keys)), None)
    if kind is None:
        problems.append(f"{place}: {_missing(row)}")
        return None
    values = {key: row[key] for key in KINDS[kind]}
    wrong = [told for key, value in values.items() for told in _wrong(key, value)]
    if not wrong and len({isinstance(value, str) for value in values.values()}) > 1:
        wrong.append(f"expected {', '.join(values)} all as texts or all as messages, got both")
    if kind == "messages" and row.get("tools") is not None:
        values["tools"] = row["tools"]
    split = row.get("split")
    if split is not None and split not in SPLITS:
        wrong.append(f"split {shown(split, 40)}. {near(str(split), SPLITS)}")
    problems += [f"{place}: {told}" for told in wrong]
    return None if wrong else Example(kind, values, place, split)


def _missing(row: Mapping[Any, Any]) -> str:
    known = sorted({key for keys in KINDS.values() for key in keys})
    got = [str(key) for key in row if key not in BESIDE]
    options = "; or ".join(" and ".join(keys) for keys in KINDS.values())
    hints = [near(key, known) for key in got if key not in known]
    hint = next((told for told in hints if told.startswith("Did")), "")
    return f"expected the keys {options}; got {_keys(row)}. {hint}".rstrip()


def _wrong(key: str, value: Any) -> Iterator[str]:
    """Yield what is wrong with a text or a list of messages."""
    if isinstance(value, str) and key != "messages":
        if not value.strip():
            yield f"expected a text as {key}, got an empty one"
        return
    if key == "text" or not isinstance(value, Sequence) or isinstance(value, str):
        kinds = "a text" if key == "text" else "a list of messages"
        kinds = kinds if key in ("text", "messages") else f"a text or {kinds}"
        yield f"expected {key} as {kinds}, got {shown(value, 40)}"
        return
    if not value:
        yield f"expected one message or more as {key}, got none"
    for number, message in enumerate(value, 1):
        if not isinstance(message, Mapping):
            yield f"message {number} of {key}: expected an object, got {shown(message, 40)}"
            continue
        if not isinstance(message.get("role"), str):
            yield f"message {number} of {key}: expected a role, got {_keys(message)}"
        content = message.get("content")
        if not isinstance(content, str | list) and not message.get("tool_calls"):
            yield f"message {number} of {key}: expected content, got {shown(content, 40)}"


def _keys(row: Mapping[Any, Any]) -> str:
    return some([str(key) for key in row if key not in BESIDE]) or "none"
