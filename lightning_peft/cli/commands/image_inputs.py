"""The images that ``lightning-peft predict`` was asked for: files, folders, patterns, tables."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_peft.errors import near

if TYPE_CHECKING:
    from lightning_peft.cli.jobs.served import Served

__all__ = ["Asked", "asked_images", "asked_in_a_table", "is_table"]


@dataclass
class Asked:
    """What was asked for.

    Attributes:
        names: How each image is called in the result.
        paths: The file of each.
        others: How many files that are no images have each suffix.
        problems: Why nothing can be predicted, a sentence each.
    """

    names: list[str] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)
    others: Mapping[str, int] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def is_table(path: Path) -> bool:
    """Whether a word names a table, of images or of texts, and no images."""
    from lightning_peft.data.text_tables import SUFFIXES, is_saved

    return path.suffix.lower() in SUFFIXES or is_saved(path)


def asked_images(words: Sequence[Path]) -> Asked:
    """Find the images of the words of a command line.

    Args:
        words: Files, folders, and patterns such as ``photos/*.jpg``, which a shell may have left
            as they are.
    """
    from lightning_peft.data.listing import list_images

    asked = Asked()
    others: Counter[str] = Counter()
    for word in words:
        if word.is_dir():
            found = list_images(word)
            paths = sorted(map(Path, found.paths))
            asked.paths += paths
            # of one folder the names are those below it
            names = [p.relative_to(word) for p in paths] if len(words) == 1 else paths
            asked.names += [path.as_posix() for path in names]
            others.update(found.others)
            if not paths:
                asked.problems.append(f"there is no image below {word}")
        elif word.exists():
            asked.paths.append(word)
            asked.names.append(word.as_posix())
        else:
            _add_pattern(asked, word, others)
    asked.others = others
    return asked


def _add_pattern(asked: Asked, word: Path, others: Counter[str]) -> None:
    from lightning_peft.data.decode import readable_suffixes

    found = [Path(path) for path in sorted(glob.glob(str(word), recursive=True))]
    files = [path for path in found if path.is_file()]
    images = [path for path in files if path.suffix.lower() in readable_suffixes()]
    others.update(path.suffix.lower() for path in files if path not in images)
    asked.paths += images
    asked.names += [path.as_posix() for path in images]
    if images:
        return
    if glob.has_magic(str(word)):
        asked.problems.append(f"there is no image that fits {word}")
        return
    beside = sorted(os.listdir(word.parent)) if word.parent.is_dir() else []
    hint = f" {near(word.name, beside)}" if beside else ""
    asked.problems.append(
        f"expected an image, a folder of images, a pattern, or a CSV file, got {word}, which does "
        f"not exist.{hint}"
    )


def asked_in_a_table(path: Path, served: Served) -> Asked:
    """Read names of images from a CSV file, as the run read its labels.

    A name is below the folder of the file, below the working directory, or below the folder of the
    images that the run was trained on.

    Args:
        path: The CSV file.
        served: The model.

    Raises:
        DataError: If the file lacks the column of the names.
    """
    from lightning_peft.data.unlabelled import read_columns

    found = read_columns(path, served.file_column, encoding=served.encoding)
    names = [str(name) for name in found]
    places = [path.parent, Path(), *([served.image_root] if served.image_root else [])]
    paths = [
        next((place / name for place in places if (place / name).is_file()), path.parent / name)
        for name in names
    ]
    return Asked(names, paths)
