"""Read ``sweep.json`` of a sweep whose directory was moved or copied."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_peft.cli.runs.places import moved_words
from lightning_peft.errors import PEFTError
from lightning_peft.files.plain_file import read_text

__all__ = ["in_place", "started_in"]

STORAGE = "hydra.sweeper.storage="


def in_place(record: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """Return the record of a sweep with the present paths of what lies in its directory.

    In a copy, the study of the original is not that of the copy.

    Args:
        record: The content of ``sweep.json``.
        directory: The directory of the sweep now.
    """
    before, cwd = record.get("directory"), record.get("cwd")
    if not isinstance(before, str):  # of an older release
        return dict(record)
    now = os.path.abspath(directory)
    found: dict[str, Any] = moved_words(dict(record), before, now)
    if isinstance(cwd, str) and before != now:
        storage = f"{STORAGE}{os.path.relpath(before, cwd)}/"
        found["hydra"] = [
            f"{STORAGE}{now}/{word.removeprefix(storage)}" if word.startswith(storage) else word
            for word in found.get("hydra") or []
        ]
    return found


def started_in(record: Path) -> Path | None:
    """Return the working directory in which a sweep was started, if it is another than now.

    Relative paths of its command line, such as ``data.root=images``, begin there.

    Args:
        record: The ``sweep.json`` of the sweep.

    Returns:
        The directory; ``None`` if it is this one, is not known or is gone, or if the sweep lies
        here as it lay there, so that all of it was moved or copied together.
    """
    try:
        content = json.loads(read_text(record))
        cwd, place = Path(content["cwd"]), content["directory"]
    except (PEFTError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if not cwd.is_dir() or cwd.samefile(Path.cwd()):
        return None
    inside = os.path.relpath(place, cwd)
    together = not inside.startswith("..") and os.path.abspath(inside) == os.path.abspath(
        record.parent
    )
    return None if together else cwd
