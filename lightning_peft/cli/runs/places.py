"""Give the paths in the files of a run or a sweep their present place.

A directory may be moved, copied, renamed, or mounted elsewhere. What its files say about places
inside of it is then about another directory: that of before, which may be gone, or be the original
of a copy, in which nothing may be written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["is_within", "moved_path", "moved_text", "moved_words"]

BEFORE = r"(?:(?<=sqlite:///)|(?<![\w.\-/\\]))"
AFTER = r"(?=[/\\'\"\s,;:\]})]|$)"
"""Where a path may begin and end in a text; a directory whose name only begins alike is another."""


def is_within(path: str | Path, directory: str | Path) -> bool:
    """Whether a path lies in a directory, by whatever links either is reached."""
    return Path(directory).resolve() in Path(path).resolve().parents


def moved_path(path: str, before: str | Path, now: str | Path) -> str:
    """Return a path in a directory that is now elsewhere; another path stays as it is.

    Args:
        path: The path of a file.
        before: The directory as it was, which may not exist any more.
        now: The directory as it is.

    >>> moved_path("/old/a/best.ckpt", "/old", "/new")
    '/new/a/best.ckpt'
    >>> moved_path("/older/best.ckpt", "/old", "/new")
    '/older/best.ckpt'
    """
    try:
        inside = Path(path).relative_to(before)
    except ValueError:
        return path
    return str(Path(now) / inside)


def moved_text(text: str, before: str | Path, now: str | Path) -> str:
    """Return a text, such as an override, with a directory replaced wherever a path begins with it.

    Args:
        text: The text.
        before: The directory as it was.
        now: The directory as it is.

    >>> moved_text("hydra.sweeper.storage=sqlite:////old/study.db", "/old", "/new")
    'hydra.sweeper.storage=sqlite:////new/study.db'
    >>> moved_text("data.root=/older/images", "/old", "/new")
    'data.root=/older/images'
    """
    return re.sub(f"{BEFORE}{re.escape(str(before))}{AFTER}", lambda _: str(now), text)


def moved_words(content: Any, before: str | Path, now: str | Path) -> Any:
    """Return JSON with a directory replaced in every text; see :func:`moved_text`."""
    if os.fspath(before) == os.fspath(now):
        return content
    if isinstance(content, str):
        return moved_text(content, before, now)
    if isinstance(content, Mapping):
        return {key: moved_words(value, before, now) for key, value in content.items()}
    if isinstance(content, list):
        return [moved_words(value, before, now) for value in content]
    return content
