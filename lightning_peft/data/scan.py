"""Reading folders of class folders, and the reasons why they cannot serve."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lightning_peft.data.decode import readable_suffixes
from lightning_peft.data.listing import is_junk, list_images, not_read
from lightning_peft.data.split_names import SPLITS, split_of
from lightning_peft.errors import DataError, some

__all__ = ["Folder", "find_problems", "notes_on", "read_folder", "read_folders", "refuse"]

MOST_TOLD = 20


@dataclasses.dataclass(frozen=True)
class Folder:
    """The content of one folder of class folders.

    Attributes:
        root: The folder.
        class_names: Names of the class folders, sorted.
        paths: Image files, sorted within their class.
        labels: Class of each file, as an index into ``class_names``.
        others: How many files of the classes are no images that are read, by suffix.
    """

    root: Path
    class_names: tuple[str, ...]
    paths: tuple[str, ...]
    labels: tuple[int, ...]
    others: Mapping[str, int] = dataclasses.field(default_factory=dict)

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
    """List the images of a folder that has a folder for each class.

    Args:
        root: The folder. Hidden folders below it, and those that systems leave, are not classes.

    Returns:
        Its content; an empty class has no files.
    """
    names = sorted(entry.name for entry in _folders(root))
    paths: list[str] = []
    labels: list[int] = []
    others: Counter[str] = Counter()
    for label, name in enumerate(names):
        found = list_images(root / name)
        paths += found.paths
        labels += [label] * len(found.paths)
        others.update(found.others)
    return Folder(root, tuple(names), tuple(paths), tuple(labels), others)


def read_folders(root: Path) -> dict[str, Folder]:
    """Read class folders in either layout: with folders of splits, or without.

    Args:
        root: The folder. Splits are recognised by their names (``train``, ``Val``, ``validation``,
            ``dev``, ``testing`` ...) and hold class folders themselves.

    Returns:
        The content of each split's folder; without splits only ``"train"``, which is the root.

    Raises:
        DataError: If there is no such folder, a split is there twice, or there are folders for
            evaluation without one for training.
    """
    if not root.is_dir():
        raise DataError(f"Expected a folder of class folders at {root}, got none: make it.")
    named: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for entry in sorted(_folders(root)):
        if (split := split_of(entry.name)) is not None:
            named[split].append(entry)
    # a class may be called "train"; the folder of a split holds folders
    full = {split: [p for p in paths if any(_folders(p))] for split, paths in named.items()}
    if not full["train"]:
        if evaluation := [path.name for split in SPLITS[1:] for path in full[split]]:
            raise DataError(
                f"Expected a folder `train` beside {some(evaluation)} in {root}, got none: "
                f"{some(evaluation)} holds class folders, as a split does. Put the class folders "
                "of the training images into `train`, or rename a class of that name."
            )
        if len(named["train"]) != 1 or not any(named[split] for split in SPLITS[1:]):
            return {"train": read_folder(root)}
        if any(split_of(entry.name) is None for entry in _folders(root)):
            return {"train": read_folder(root)}  # these names are classes among others
    twice = [paths for paths in named.values() if len(paths) > 1]
    if twice:
        told = "; ".join(" and ".join(path.name for path in paths) for paths in twice)
        raise DataError(f"Expected one folder of each split in {root}, got {told}. Join them.")
    return {split: read_folder(paths[0]) for split, paths in named.items() if paths}


def _folders(folder: Path) -> Iterator[Path]:
    return (entry for entry in folder.iterdir() if entry.is_dir() and not is_junk(entry.name))


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
            told = not_read(folder.others)
            problems.append(
                f"{folder.root}: no image in the class folders {names}"
                + (f" ({told})" if told else "")
            )
        missing = sorted(set(first.class_names) - set(folder.class_names))
        extra = sorted(set(folder.class_names) - set(first.class_names))
        if missing:
            problems.append(f"{folder.root}: without the classes {missing} of {first.root}")
        if extra:
            problems.append(f"{folder.root}: with classes {extra} that {first.root} lacks")
    return problems


def notes_on(root: Path, folders: Mapping[str, Folder]) -> list[str]:
    """Return a sentence about each kind of file or folder that is left out.

    Args:
        root: The folder that was read.
        folders: What was found in it.
    """
    others: Counter[str] = Counter()
    for folder in folders.values():
        others.update(folder.others)
    notes = [told] if (told := not_read(others)) else []
    places = dict.fromkeys((root, *(folder.root for folder in folders.values())))
    notes += [
        f"images directly in {place} not read, in no class: {images:,}"
        for place in places
        if (images := _images_in(place))
    ]
    if folders["train"].root != root:
        beside = sorted(e.name for e in _folders(root) if split_of(e.name) is None)
        if beside:
            notes.append(f"folders beside the splits not read: {some(beside)}")
    return notes


def _images_in(folder: Path) -> int:
    readable = readable_suffixes()
    return sum(
        entry.suffix.lower() in readable and not is_junk(entry.name) and entry.is_file()
        for entry in folder.iterdir()
    )


def refuse(problems: Sequence[str]) -> None:
    """Raise all problems at once, if there are any."""
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems[:MOST_TOLD])
        more = len(problems) - MOST_TOLD
        rest = f"\n  and {more:,} more" if more > 0 else ""
        raise DataError(
            f"This folder cannot serve as images of classes, for {len(problems)} reason(s); "
            f"add, repair or remove these files:\n{lines}{rest}"
        )
