"""Hints for a labels file whose names of images are elsewhere, or written otherwise."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

__all__ = ["column_hint", "near_file_in"]

_USUAL = ("filename", "file_name", "path", "filepath", "file_path", "image", "image_path", "img")
"""What a column of files is called elsewhere."""

_LOOKED_AT = 20


def column_hint(header: Sequence[str], rows: Sequence[Mapping[str, str]], root: Path) -> str:
    """Return which column seems to hold the names of the images, as a sentence after a space.

    Args:
        header: The columns.
        rows: The lines.
        root: The folder of the images.
    """
    looked_at = rows[:_LOOKED_AT]
    found = [
        name
        for name in header
        if any(row[name] and (root / row[name]).is_file() for row in looked_at)
    ]
    found = found or [name for name in header if name.lower() in _USUAL]
    if not found:
        return (
            " Another column is named by file_column=... (on the command line "
            "data.file_column=...)."
        )
    return (
        f" '{found[0]}' seems to hold files: file_column={found[0]} (on the command line "
        f"data.file_column={found[0]})."
    )


def near_file_in(root: Path) -> Callable[[str], str]:
    """Return a function that says which file may have been meant by the name of a missing one.

    A suffix may have been left out, a folder, or the case may be another. The folder is looked
    through at the first name.

    Args:
        root: The folder of the images.
    """
    known: dict[str, str] = {}

    def near_file(name: str) -> str:
        if not known:
            known.update(_files_below(root))
        base = os.path.basename(name.replace("\\", "/")).lower()
        hit = known.get(base) or known.get(os.path.splitext(base)[0])
        return f" (there is {hit})" if hit else ""

    return near_file


def _files_below(root: Path) -> dict[str, str]:
    """Return the files below a folder by their names in lower case, with and without suffix."""
    found: dict[str, str] = {}
    for folder, folders, files in os.walk(root):
        folders.sort()
        for file in sorted(files):
            path = os.path.relpath(os.path.join(folder, file), root).replace(os.sep, "/")
            found.setdefault(file.lower(), path)
            found.setdefault(os.path.splitext(file)[0].lower(), path)
    return found
