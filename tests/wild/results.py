"""The file of results: one line for each module, in the order of packages and names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["RESULTS", "read", "write"]

RESULTS = Path(__file__).parent / "results.jsonl"


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Return the line of each module, by ``package/name``."""
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {f"{line['package']}/{line['name']}": line for line in lines}


def write(path: Path, line: dict[str, Any]) -> None:
    """Replace a module's line, or add it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = read(path) | {f"{line['package']}/{line['name']}": line}
    text = "".join(json.dumps(lines[name], sort_keys=True) + "\n" for name in sorted(lines))
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
