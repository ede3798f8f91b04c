"""Reading and checking a folder of images before training."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from lightning_peft.errors import DataError

__all__ = ["Verify", "find_problems", "read_folder", "read_folders", "unreadable"]

Verify = Literal["header", "decode", "none"]
_PROGRESS_ABOVE = 2000  # files; fewer are checked before a progress bar could be read


@dataclasses.dataclass(frozen=True)
class Folder:
    """The content of one folder of class folders.

    Attributes:
        root: The folder.
        class_names: Names of the class folders, sorted.
        paths: Image files, sorted within their class.
        labels: Class of each file, as an index into ``class_names``.
    """

    root: Path
    class_names: tuple[str, ...]
    paths: tuple[str, ...]
    labels: tuple[int, ...]

    @property
    def keys(self) -> list[str]:
        """The path of each file relative to the root, the same on every system."""
        return [Path(path).relative_to(self.root).as_posix() for path in self.paths]

    def counts(self) -> list[int]:
        """Return the number of images of each class."""
        found = [0] * len(self.class_names)
        for label in self.labels:
            found[label] += 1
        return found


def read_folder(root: Path) -> Folder:
    """List the images of a folder that has a folder for each class, as torchvision reads it.

    Args:
        root: The folder. Hidden folders below it are not classes.

    Returns:
        Its content; an empty class has no files.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    names = sorted(
        entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
    if not names:
        return Folder(root, (), (), ())
    numbers = {name: label for label, name in enumerate(names)}
    found = make_dataset(str(root), numbers, IMG_EXTENSIONS, allow_empty=True)
    paths, labels = zip(*found, strict=True) if found else ((), ())
    return Folder(root, tuple(names), paths, labels)


def read_folders(root: Path) -> dict[str, Folder]:
    """Read class folders in either layout: with folders of splits, or without.

    Args:
        root: The folder.

    Returns:
        The content of each split's folder; without splits only ``"train"``, which is the root.

    Raises:
        DataError: If there is no such folder.
    """
    if not root.is_dir():
        raise DataError(f"Expected a folder of class folders at {root}, got none: make it.")
    names = [name for name in ("train", "val", "test") if (root / name).is_dir()]
    # a class may be called "train"; such a folder holds no folders, and no "val" is next to it
    if "train" not in names or (names == ["train"] and not _has_folders(root / "train")):
        return {"train": read_folder(root)}
    return {name: read_folder(root / name) for name in names}


def _has_folders(folder: Path) -> bool:
    return any(entry.is_dir() and not entry.name.startswith(".") for entry in folder.iterdir())


def find_problems(folders: Sequence[Folder]) -> list[str]:
    """Find the reasons why folders cannot be the splits of one classification task.

    Args:
        folders: The training folder first, or the only one.

    Returns:
        One line for each problem.
    """
    problems = []
    first = folders[0]
    if len(first.class_names) < 2:
        found = f"only '{first.class_names[0]}'" if first.class_names else "none"
        problems.append(
            f"{first.root}: expected a folder for each of 2 or more classes, found {found}"
        )
    for folder in folders:
        counts = zip(folder.class_names, folder.counts(), strict=True)
        empty = [name for name, count in counts if not count]
        if empty:
            names = ", ".join(f"'{name}'" for name in empty)
            problems.append(f"{folder.root}: no image in the class folders {names}")
        missing = sorted(set(first.class_names) - set(folder.class_names))
        extra = sorted(set(folder.class_names) - set(first.class_names))
        if missing:
            problems.append(f"{folder.root}: without the classes {missing} of {first.root}")
        if extra:
            problems.append(f"{folder.root}: with classes {extra} that {first.root} lacks")
    return problems


def unreadable(paths: Sequence[str], verify: Verify) -> list[str]:
    """Find the files that are not readable images.

    Args:
        paths: Image files.
        verify: ``"header"`` opens each file and checks what can be checked without decoding it (PNG
            checksums; of a JPEG only the header, so a truncated one passes). ``"decode"`` decodes
            each in full. ``"none"`` checks nothing.

    Returns:
        One line for each unreadable file.
    """
    if verify == "none":
        return []
    with ThreadPoolExecutor(8) as pool:
        checks: Iterable[str | None] = pool.map(lambda path: _problem(path, verify), paths)
        if len(paths) > _PROGRESS_ABOVE:
            from rich.progress import track

            checks = track(checks, f"Checking {len(paths):,} images", total=len(paths))
        return [problem for problem in checks if problem]


def _problem(path: str, verify: Verify) -> str | None:
    from PIL import Image

    try:
        with Image.open(path) as image:
            if verify == "decode":
                image.load()
            else:
                image.verify()
    except Exception as error:  # a broken file can make PIL's decoders raise anything
        return f"{path}: {type(error).__name__}: {error}"
    return None


def refuse(problems: Sequence[str]) -> None:
    """Raise all problems at once, if there are any."""
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise DataError(
            f"This folder cannot serve as images of classes, for {len(problems)} reason(s); "
            f"add, repair or remove these files:\n{lines}"
        )
