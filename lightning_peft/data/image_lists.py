"""Text files that list images, with a path and a label in each line: ``images/test/0.jpg 3``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ImageList", "missing_images", "read_list"]

MOST_TOLD = 5
"""The largest number of wrong lines or missing images to list; the rest is counted."""


@dataclass(frozen=True)
class ImageList:
    """The content of one list.

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
        root: The folder that its paths are relative to.
        num_classes: Number of classes, which all labels must be below.

    Returns:
        The list and no problems, or ``None`` and a line for each problem.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None, [f"{path}: this list does not exist"]
    except (OSError, UnicodeDecodeError) as error:
        return None, [f"{path}: cannot be read: {error}"]
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
    """Return a line for each missing image of a list; each folder is read once."""
    present = {folder: _entries(folder) for folder in {os.path.dirname(p) for p in found.images}}
    gone = [p for p in found.images if os.path.basename(p) not in present[os.path.dirname(p)]]
    told = [f"{found.path}: lists {path}, which does not exist" for path in gone]
    return _shortened(told, f"{found.path}: more missing images")


def _entries(folder: str) -> Iterable[str]:
    try:
        return frozenset(os.listdir(folder))
    except OSError:
        return frozenset()


def _shortened(problems: Sequence[str], rest: str) -> list[str]:
    more = len(problems) - MOST_TOLD
    return [*problems[:MOST_TOLD], *([f"{rest}: {more}"] if more > 0 else [])]
