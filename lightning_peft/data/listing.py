"""The image files below a folder, and a count of the other files by suffix."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from lightning_peft.data.decode import PLUGINS, readable_suffixes

__all__ = ["Listing", "is_junk", "list_images", "not_read"]

_JUNK = frozenset({"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir"})
"""What systems and archives leave in folders, besides names that begin with a dot."""


class Listing(NamedTuple):
    """The files below a folder.

    Attributes:
        paths: The images, each folder's files in order.
        others: How many other files there are with each suffix.
    """

    paths: tuple[str, ...]
    others: Mapping[str, int]


def is_junk(name: str) -> bool:
    """Whether a file or folder is hidden, or left by a system (``Thumbs.db``, ``__MACOSX``)."""
    return name.startswith(".") or name.lower() in _JUNK


def list_images(root: str | Path) -> Listing:
    """List the images below a folder, links to folders included.

    Args:
        root: The folder.
    """
    readable = readable_suffixes()
    paths: list[str] = []
    others: Counter[str] = Counter()
    for folder, names in sorted(_folders(str(root))):
        for name in sorted(names):
            suffix = os.path.splitext(name)[1].lower()
            if suffix in readable:
                paths.append(os.path.join(folder, name))
            else:
                others[suffix] += 1
    return Listing(tuple(paths), others)


def _folders(root: str) -> list[tuple[str, list[str]]]:
    found = []
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = [
            name for name in folders if not is_junk(name) and not _leads_back(folder, name)
        ]
        found.append((folder, [name for name in files if not is_junk(name)]))
    return found


def _leads_back(folder: str, name: str) -> bool:
    """Whether a folder is a link to one that it is in."""
    path = os.path.join(folder, name)
    if not os.path.islink(path):
        return False
    there, here = os.path.realpath(path), os.path.realpath(folder)
    return here == there or here.startswith(there + os.sep)


def not_read(others: Mapping[str, int]) -> str:
    """Return a sentence about files that are not read; ``""`` if there are none.

    >>> not_read({".txt": 1, ".psx": 2})
    '3 files not read: .psx 2, .txt 1'
    """
    total = sum(others.values())
    if not total:
        return ""
    counts = ", ".join(
        f"{suffix or 'without a suffix'} {count}"
        for suffix, count in sorted(others.items(), key=lambda item: (-item[1], item[0]))
    )
    missing = sorted({PLUGINS[suffix][1] for suffix in others if suffix in PLUGINS})
    advice = f" (pip install {' '.join(missing)} reads {_suffixes(others)})" if missing else ""
    return f"{total:,} file{'s' if total != 1 else ''} not read: {counts}{advice}"


def _suffixes(others: Mapping[str, int]) -> str:
    return " and ".join(sorted(suffix for suffix in others if suffix in PLUGINS))
