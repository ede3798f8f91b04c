"""Text files that list images: a path and a label in each line, as in ``images/test/0.jpg 3``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ImageList", "missing_images", "read_list"]

MOST_TOLD = 5
"""Of more wrong lines or missing images than this, the rest is counted."""


@dataclass(frozen=True)
class ImageList:
    """What one list holds.

    Attributes:
        path: The list.
        images: Paths of the images, in the order of the lines.
        labels: Class of each, from 0.
    """

    path: Path
    images: tuple[str, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.images)


def read_list(path: Path, root: Path, num_classes: int) -> tuple[ImageList | None, list[str]]:
    """Read a list.

    Args:
        path: The list.
        root: What its paths are relative to.
        num_classes: Labels have to be below this.

    Returns:
        The list and no problem, or ``None`` and a line for each problem.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None, [f"{path}: there is no such list"]
    except (OSError, UnicodeDecodeError) as error:
        return None, [f"{path}: not a list that can be read: {error}"]
    images: list[str] = []
    labels: list[int] = []
    wrong: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        image, _, label = line.strip().rpartition(" ")
        if not image or not label.isdecimal():
            wrong.append(f"{path}:{number}: expected a path and a label, got '{line.strip()}'")
        elif int(label) >= num_classes:
            wrong.append(f"{path}:{number}: expected a label below {num_classes}, got {label}")
        else:
            images.append(str(root / image.strip()))
            labels.append(int(label))
    if not images and not wrong:
        wrong.append(f"{path}: the list is empty")
    if wrong:
        return None, _shortened(wrong, f"{path}: more wrong lines")
    return ImageList(path, tuple(images), tuple(labels)), []


def missing_images(found: ImageList) -> list[str]:
    """Say which images of a list are not there; each folder is looked into once."""
    present = {folder: _entries(folder) for folder in {os.path.dirname(p) for p in found.images}}
    gone = [p for p in found.images if os.path.basename(p) not in present[os.path.dirname(p)]]
    told = [f"{found.path}: lists {path}, which is not there" for path in gone]
    return _shortened(told, f"{found.path}: more images that are not there")


def _entries(folder: str) -> Iterable[str]:
    try:
        return frozenset(os.listdir(folder))
    except OSError:
        return frozenset()


def _shortened(problems: Sequence[str], rest: str) -> list[str]:
    more = len(problems) - MOST_TOLD
    return [*problems[:MOST_TOLD], *([f"{rest}: {more}"] if more > 0 else [])]
