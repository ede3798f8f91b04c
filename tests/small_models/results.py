"""The file of results: one line for each model, each kind of weights, and each choice of places."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["RESULTS", "STATUS", "read", "write"]

RESULTS = Path(__file__).parent / "results.jsonl"
STATUS = ("ok", "refused", "base fails", "wrong", "not run")


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Return the lines by their keys."""
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {line["key"]: line for line in lines}


def write(path: Path, line: dict[str, Any]) -> None:
    """Replace a line, or add it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = read(path) | {line["key"]: line}
    text = "".join(json.dumps(found, sort_keys=True) + "\n" for found in lines.values())
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
