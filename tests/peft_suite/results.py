"""The file of results: the counts of each list, and each row of which something is to be said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["RESULTS", "STATUS", "read", "write"]

RESULTS = Path(__file__).parent / "results.json"
STATUS = ("equal", "refused", "different", "peft fails")


def read(path: Path) -> dict[str, Any]:
    """Return the results: the release of peft, and what :func:`write` was given."""
    if not path.exists():
        return {"peft": "", "lists": {}}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def write(path: Path, release: str, found: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Write the results.

    Args:
        path: The file.
        release: The release of peft.
        found: What is known of each row, by list and by name.
    """
    lists = {
        part: {
            "counts": {
                status: sum(line["status"] == status for line in lines.values())
                for status in STATUS
            },
            "rows": {
                name: line
                for name, line in lines.items()
                if line["status"] != "equal" or line["message"]
            },
        }
        for part, lines in found.items()
    }
    text = json.dumps({"peft": release, "lists": lists}, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
