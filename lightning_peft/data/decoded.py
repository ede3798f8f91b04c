"""Images that are decoded once: their pixels in a file that every process maps.

A small step of training waits for its images: a JPEG takes milliseconds to decode and to resize,
its pixels microseconds to read back. What comes before the augmentation is the same in every epoch,
so that it is kept, as the bytes that it is made of.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import secrets
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["DecodedImages", "decoded_name"]

Shape = tuple[int, int, int]


class DecodedImages:
    """The pixels of a list of images, each kept by the first who has decoded it.

    Loading processes, ranks and later runs share the file. Its room is taken from the disk when it
    is made, so that a full disk is an error then and there. A byte for each image says that its
    pixels are all there: a process that is killed leaves images that are decoded again.

    Args:
        path: The file; made if it is not there, or has another size than it should.
        shapes: Channels, height and width of each image.
        owner: Whoever removes the file when it goes; it stays as long as these images, in this
            process.

    Raises:
        OSError: If there is no room for the file, or it cannot be made.
    """

    def __init__(self, path: Path, shapes: Sequence[Shape], owner: object = None) -> None:
        self.path = path
        self.shapes = shapes
        self.owner = owner
        sizes = (channels * height * width for channels, height, width in shapes)
        self._starts = list(itertools.accumulate(sizes, initial=len(shapes)))
        self._bytes: Tensor | None = None
        if not path.exists() or path.stat().st_size != self.nbytes:
            _reserve(path, self.nbytes)

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return self._starts[-1]

    def __len__(self) -> int:
        """How many images have been decoded."""
        return int(self._mapped()[: len(self.shapes)].sum())

    def get(self, index: int) -> Tensor | None:
        """Give the pixels of an image, uint8 ``(C, H, W)``, as a view that must not be changed.

        Args:
            index: Of the image.

        Returns:
            The pixels, or ``None`` if nobody has decoded it yet.
        """
        index = range(len(self.shapes))[index]  # the byte behind the last one is a pixel
        return self._view(index) if self._mapped()[index] else None

    def put(self, index: int, pixels: Tensor) -> None:
        """Keep the pixels of an image.

        Args:
            index: Of the image.
            pixels: uint8 ``(C, H, W)`` of the image's shape.
        """
        index = range(len(self.shapes))[index]
        self._view(index).copy_(pixels)
        self._mapped()[index] = 1  # last: nobody reads half an image

    def _view(self, index: int) -> Tensor:
        start, end = self._starts[index], self._starts[index + 1]
        return self._mapped()[start:end].view(self.shapes[index])

    def _mapped(self) -> Tensor:
        if self._bytes is None:
            self._bytes = torch.from_file(
                str(self.path), shared=True, size=self.nbytes, dtype=torch.uint8
            )
        return self._bytes

    def __getstate__(self) -> dict[str, object]:
        # another process maps the file itself
        return {**self.__dict__, "_bytes": None, "owner": None}


def decoded_name(paths: Sequence[str], how: str) -> str:
    """Name the file of decoded images, by what decides its content.

    Args:
        paths: The image files; their times and sizes count as well.
        how: How they are decoded.
    """
    facts = [(os.path.abspath(path), (found := os.stat(path)).st_mtime_ns, found.st_size)
             for path in paths]  # fmt: skip
    libraries = [version("pillow"), version("torchvision"), version("timm")]
    content = json.dumps([1, libraries, how, facts]).encode()
    return f"{hashlib.sha256(content).hexdigest()[:32]}.pixels"


def _reserve(path: Path, size: int) -> None:
    """Make a file of zeros whose room is there; the first of several processes makes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(6)}.{path.name}")
    try:
        with temporary.open("xb") as file:
            file.truncate(size)
            _take_room(file.fileno(), size)
        if not path.exists() or path.stat().st_size != size:
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _take_room(file: int, size: int) -> None:
    """Take the room of a file from the disk, where that can be done.

    A hole in a mapped file kills the process that writes to it when the disk is full.
    """
    if not size or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system without this
            raise
