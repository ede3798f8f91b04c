"""The results: a file to which one line is appended for each run, whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_peft.errors import DataError

__all__ = ["Store", "key_of"]

KEYS = ("kind", "task", "method", "budget", "seed", "setting", "fold")


def key_of(line: Mapping[str, Any], keys: Sequence[str] = KEYS) -> tuple[Any, ...]:
    """Return what identifies a run."""
    return tuple(line.get(name) for name in keys)


class Store:
    """A file of JSON lines, the first of which is the recipe.

    Args:
        path: The file, which the first run makes if there is none.
        recipe: What all runs have in common.
        keys: The entries of a line that identify it.

    Raises:
        DataError: If the file is of another recipe, or a line in it is none of this kind.
    """

    def __init__(self, path: Path, recipe: Mapping[str, Any], keys: Sequence[str] = KEYS) -> None:
        self.path, self.keys = path, tuple(keys)
        self.lines: list[dict[str, Any]] = []
        self._recipe: dict[str, Any] | None = None
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if text and not text.endswith("\n"):  # a line that was cut when the machine went away
            whole, _, _ = text.rpartition("\n")
            text = whole + "\n" if whole else ""
            path.write_text(text, encoding="utf-8")
        if not text:
            self._recipe = dict(recipe)
            return
        first, *others = text.splitlines()
        found = _line(path, 1, first)
        if found.get("recipe") != json.loads(json.dumps(recipe)):
            raise DataError(
                f"Expected results of the recipe {json.dumps(recipe)}, got {path} with "
                f"{json.dumps(found.get('recipe'))}: use another file, --out."
            )
        self.lines = [_line(path, number, text) for number, text in enumerate(others, 2)]

    def add(self, line: Mapping[str, Any]) -> None:
        """Append a run, its numbers with six digits."""
        if self._recipe is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._write({"recipe": self._recipe})
            self._recipe = None
        short = {name: _short(value) for name, value in line.items()}
        self._write(short)
        self.lines.append(short)

    def done(self) -> set[tuple[Any, ...]]:
        """Return the keys of all runs in the file."""
        return {key_of(line, self.keys) for line in self.lines}

    def _write(self, line: Mapping[str, Any]) -> None:
        data = (json.dumps(line) + "\n").encode()
        file = os.open(self.path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        try:
            os.write(file, data)
            os.fsync(file)
        finally:
            os.close(file)


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _line(path: Path, number: int, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise DataError(f"Expected a JSON object in line {number} of {path}, got {text[:60]!r}.")
    return found
