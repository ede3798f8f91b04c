"""Prompts in a file: a JSONL or CSV file with the keys of the training, or a line for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_peft.data.conversations import refused, rows_of
from lightning_peft.errors import DataError, shown

__all__ = ["read_prompts"]

KEYS = ("prompt", "messages", "text")


def read_prompts(path: Path) -> list[Any]:
    """Read prompts.

    Args:
        path: A JSONL or CSV file in which each line has one of ``prompt`` (a text or a list of
            messages), ``messages`` (that end with somebody else than the assistant) or ``text``; or
            a ``.txt`` file with a prompt on every line. In UTF-8.

    Returns:
        A text or a list of messages for each.

    Raises:
        DataError: If there is no such file, or listing all problems with their lines.
    """
    if path.suffix == ".txt" and path.is_file():
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"Expected a text file in UTF-8, got {path}: {error}") from error
        rows: list[tuple[str, Any]] = [
            (f"line {i}", {"prompt": line}) for i, line in enumerate(lines, 1)
        ]
        problems: list[str] = []
    else:
        rows, problems = rows_of(path)
    found = []
    for place, row in rows:
        key = next((k for k in KEYS if isinstance(row, dict) and row.get(k)), None)
        told = None
        if key is None:
            told = f"expected one of {', '.join(KEYS)}, got {shown(row, 60)}"
        elif not isinstance(row[key], str) and not _are_messages(row[key]):
            told = f"expected {key} as a text or a list of messages, got {shown(row[key], 60)}"
        elif not isinstance(row[key], str) and row[key][-1]["role"] == "assistant":
            told = f"expected {key} that end before the assistant answers, got its answer, too"
        if told is not None:
            problems.append(f"{place}: {told}")
        else:
            assert key is not None
            found.append(row[key])
    if not found and not problems:
        problems.append("it has no prompt")
    if problems:
        raise refused(str(path), problems, "prompts")
    return found


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(message, dict) and isinstance(message.get("role"), str) for message in value
    )
