"""Whether a page is the one that its results give."""

from __future__ import annotations

from pathlib import Path

__all__ = ["stale"]


def stale(path: Path, written: str, command: str) -> int:
    """Return the exit status 1, and say which command writes a page, if it has other words.

    Args:
        path: The page.
        written: What it should be.
        command: The command that writes it.
    """
    if path.exists() and path.read_text(encoding="utf-8") == written:
        return 0
    print(f"{path} has gone stale: run `{command}`")
    return 1
