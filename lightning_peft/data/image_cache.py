"""The files in which a data module keeps its decoded images."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Sequence
from pathlib import Path

from lightning_peft.data.decode import Decoding, size_of
from lightning_peft.data.decoded import DecodedImages, Shape, decoded_name
from lightning_peft.data.image_files import ImageTransform
from lightning_peft.evaluation.efficiency import human_bytes
from lightning_peft.system.atomic import A_DAY, remove_leftovers

__all__ = ["ImageCache"]

log = logging.getLogger(__name__)


class ImageCache:
    """Find or create a file of pixels for each list of images.

    Args:
        where: A directory, which later runs and the other ranks of this machine share; True for a
            temporary one, which is deleted when the process ends; False or None to keep nothing.
    """

    def __init__(self, where: bool | str | Path | None) -> None:
        self.temporary = where is True
        self.directory = None if where is None or isinstance(where, bool) else Path(where)
        self._owner: _Temporary | None = None
        self._made: dict[str, DecodedImages | None] = {}

    def of(
        self, split: str, paths: Sequence[str], transform: ImageTransform, decoding: Decoding
    ) -> DecodedImages | None:
        """Find or create the file of a list of images.

        Args:
            split: Their split: test images are read once, so no temporary file is created for them.
            paths: The image files.
            transform: Their transform; the result of its first part is kept.
            decoding: How they are read.

        Returns:
            The decoded images; ``None`` if nothing is kept, or if there is not enough space: a
            warning then says how much is needed.
        """
        once = split == "test" and self.temporary
        off = self.directory is None and not self.temporary
        if off or once or not paths:
            return None
        name = decoded_name(paths, f"{decoding} {transform.how}")
        if name not in self._made:
            shape = transform.shape
            shapes = (
                [shape] * len(paths) if shape else [_shape(path, decoding.mode) for path in paths]
            )
            self._made[name] = self._make(name, shapes)
        return self._made[name]

    def _make(self, name: str, shapes: Sequence[Shape]) -> DecodedImages | None:
        size = sum(channels * height * width for channels, height, width in shapes)
        what = f"{len(shapes):,} decoded images take {human_bytes(size)}"
        try:
            if self.directory is None:
                self.directory = Path(tempfile.mkdtemp(prefix="lightning-peft-"))
                self._owner = _Temporary(self.directory)
            directory = self.directory
            directory.mkdir(parents=True, exist_ok=True)
            remove_leftovers(directory, seconds=A_DAY)
            free = shutil.disk_usage(directory).free
            there = (directory / name).exists()
            if size > free / 2 and not there:  # the rest is for checkpoints
                raise OSError(f"at most half of the {human_bytes(free)} that are free is used")
            found = DecodedImages(directory / name, shapes, owner=self._owner)
        except OSError as error:
            warnings.warn(
                f"{what}, which cannot be kept: {error}. They are decoded again in each epoch.",
                stacklevel=2,
            )
            return None
        log.info("%s, in %s", what, directory)
        return found


class _Temporary:
    """Deletes a directory with the last reference to this; copies in other processes do not."""

    def __init__(self, directory: Path) -> None:
        weakref.finalize(self, _remove, directory, os.getpid())


def _remove(directory: Path, owner: int) -> None:
    if os.getpid() == owner:  # not in a forked loading process
        shutil.rmtree(directory, ignore_errors=True)


def _shape(path: str, mode: str) -> Shape:
    """Return the shape of an image from its header; an empty shape if it is broken."""
    try:
        width, height = size_of(path)
    except Exception:  # the error is raised when it is read
        return 0, 0, 0
    return len(mode), height, width
