"""Measuring something in a fork of this process, so that a crash costs one line."""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["in_a_fork"]


def in_a_fork(measure: Callable[[Path], dict[str, Any]], limit: float) -> dict[str, Any]:
    """Run a function in a fork, in an empty folder, with its output in a file there.

    Args:
        measure: Called with the folder; returns what can be written as JSON.
        limit: Seconds.

    Returns:
        What it returned, without the folder's name; or a ``status`` (``"not run"`` after the limit,
        ``"wrong"`` after a crash) and a ``message``.
    """
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "line.json"
        process = multiprocessing.get_context("fork").Process(
            target=_measure, args=(measure, Path(folder), found)
        )
        process.start()
        process.join(limit)
        if process.is_alive():
            process.kill()
            process.join()
            return {"status": "not run", "message": f"not finished within {limit:.0f} s"}
        if found.exists():
            text = found.read_text(encoding="utf-8").replace(f"{folder}/", "")
            line: dict[str, Any] = json.loads(text)
            return line
        log = (Path(folder) / "log").read_text(encoding="utf-8", errors="replace")
        return {"status": "wrong", "message": f"exit {process.exitcode}: {log[-600:]}"}


def _measure(measure: Callable[[Path], dict[str, Any]], folder: Path, found: Path) -> None:
    log = os.open(folder / "log", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(folder)
    found.write_text(json.dumps(measure(folder), default=str), encoding="utf-8")
