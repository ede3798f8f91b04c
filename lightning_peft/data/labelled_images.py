"""Labelled images on disk, from class folders or with a labels file, in one form."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_peft.data.copies import contradictions, find_copies, repeats_in
from lightning_peft.data.decode import Decoding
from lightning_peft.data.labelled import divided
from lightning_peft.data.labels_file import FILE, LabelsFile, find_labels, read_labels
from lightning_peft.data.scan import find_problems, notes_on, read_folders
from lightning_peft.data.verify import Verify, unreadable
from lightning_peft.errors import DataError
from lightning_peft.evaluation.metric_names import Task

__all__ = ["Files", "LabelledImages", "of_a_file", "of_folders"]

Files = dict[str, tuple[list[str], list[Any]]]
"""Paths and labels of each split."""


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """Images and their labels.

    Attributes:
        table: Task, names, labels and, as far as they are given, the splits.
        paths: The file of each image.
        problems: Why they cannot serve, if that was found while reading; a line each.
        notes: What was not read; a sentence each.
    """

    table: LabelsFile
    paths: tuple[str, ...]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def training(self) -> tuple[list[str], list[Any]]:
        """Return the paths and labels that are not of a given evaluation split."""
        given = self.table.splits or ("train",) * len(self.paths)
        chosen = [i for i, split in enumerate(given) if split == "train"]
        return [self.paths[i] for i in chosen], [self.table.labels[i] for i in chosen]

    def find_problems(self, verify: Verify, decoding: Decoding) -> list[str]:
        """Find everything that keeps the images from serving, a line each.

        Args:
            verify: As for :func:`~lightning_peft.data.verify.unreadable`; ``"none"`` looks for no
                copies either.
            decoding: How the files will be read.
        """
        found = [*self.problems, *unreadable(self.paths, verify, decoding)]
        if verify != "none":
            splits = self.table.splits or ("",) * len(self.paths)
            labels = [self._told(label) for label in self.table.labels]
            found += contradictions(find_copies(self.paths), self.paths, labels, splits)
        return found

    def repeats(self) -> list[int]:
        """Return all but the first of images with the same content, label and split."""
        splits = self.table.splits or ("",) * len(self.paths)
        kinds = list(zip(self.table.labels, splits, strict=True))
        return repeats_in(find_copies(self.paths), kinds)

    def divide(self, repeats: Sequence[int], **options: Any) -> Files:
        """Divide the images into splits, as far as these are not given.

        Args:
            repeats: Images to leave out of what is divided.
            **options: As for :func:`~lightning_peft.data.labelled.divided`.
        """
        parts = divided(self.table, repeats=frozenset(repeats), **options)
        return {
            name: ([self.paths[i] for i in part], [self.table.labels[i] for i in part])
            for name, part in parts.items()
        }

    def _told(self, label: Any) -> str:
        if isinstance(label, int):
            return f"'{self.table.names[label]}'"
        if self.table.task == "regression":
            return " ".join(f"{v:g}" for v in (label if isinstance(label, tuple) else (label,)))
        names = [name for name, yes in zip(self.table.names, label, strict=True) if yes]
        return f"'{'|'.join(names)}'"


def of_folders(root: Path, task: Task | None) -> LabelledImages:
    """Read class folders.

    Args:
        root: The folder.
        task: ``"binary"`` for a head with one output; None is ``"multiclass"``.

    Raises:
        DataError: As for :func:`~lightning_peft.data.scan.read_folders`.
    """
    folders = read_folders(root)
    names = folders["train"].class_names
    # a class that only an evaluation split has is one of the problems
    names += tuple(sorted({n for f in folders.values() for n in f.class_names} - set(names)))
    number = {name: k for k, name in enumerate(names)}
    items = [
        (split, folder.class_names[label], path, key)
        for split, folder in folders.items()
        for path, label, key in zip(folder.paths, folder.labels, folder.keys, strict=True)
    ]
    problems = find_problems(list(folders.values()))
    if task == "binary" and len(names) != 2:
        problems.append(
            f"expected two class folders for task='binary', got {len(names)}: leave the task out"
        )
    table = LabelsFile(
        root,
        task or "multiclass",
        names,
        files=tuple(key for *_, key in items),
        labels=tuple(number[name] for _, name, *_ in items),
        splits=() if folders["train"].root == root else tuple(split for split, *_ in items),
    )
    paths = tuple(path for *_, path, _ in items)
    return LabelledImages(table, paths, tuple(problems), tuple(notes_on(root, folders)))


def of_a_file(
    labels: str | Path,
    root: Path,
    *,
    task: Task | None,
    columns: Sequence[str] | None,
    file_column: str | None,
    encoding: str | None,
) -> LabelledImages:
    """Read the labels of images from a CSV file.

    Args:
        labels: The file, a path or below ``root``.
        root: The folder of the images.
        task: As for :func:`~lightning_peft.data.labels_file.read_labels`.
        columns: As there.
        file_column: The column of the images; None is ``file``.
        encoding: As there.

    Raises:
        DataError: As there; or if there is no such folder.
    """
    if not root.is_dir():
        raise DataError(f"Expected a folder of images at {root}, got none: make it.")
    path = find_labels(labels, root)
    key = FILE if file_column is None else file_column
    table = read_labels(path, root, task=task, columns=columns, key=key, encoding=encoding)
    return LabelledImages(table, tuple(str(root / name) for name in table.files))
