"""Images that are decoded once: their pixels in a file that every process maps.

A small training step waits for its images: decoding and resizing a JPEG takes milliseconds, reading
its pixels back microseconds. The pixels before the augmentation are the same in every epoch, so
they are kept, as bytes.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import secrets
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["DecodedImages", "decoded_name"]

Shape = tuple[int, int, int]


class DecodedImages:
    """The pixels of a list of images, each kept by the first process that decodes it.

    Loading processes, ranks and later runs share the file. Its space is allocated when it is
    created, so that a full disk is an error at that point. One byte for each image says whether its
    pixels are complete: an image whose process was killed is decoded again.

    Args:
        path: The file; created if it does not exist or has the wrong size.
        shapes: Channels, height and width of each image.
        owner: An object that removes the file when it is deleted; a reference keeps it alive as
            long as these images, in this process.

    Raises:
        OSError: If there is no space for the file, or it cannot be created.
    """

    def __init__(self, path: Path, shapes: Sequence[Shape], owner: object = None) -> None:
        self.path = path
        self.shapes = shapes
        self.owner = owner
        sizes = (channels * height * width for channels, height, width in shapes)
        self._starts = list(itertools.accumulate(sizes, initial=len(shapes)))
        self._bytes: Tensor | None = None
        self._gone = False
        if not path.exists() or path.stat().st_size != self.nbytes:
            _reserve(path, self.nbytes)

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return self._starts[-1]

    def __len__(self) -> int:
        """Return the number of decoded images."""
        mapped = self._mapped()
        return 0 if mapped is None else int(mapped[: len(self.shapes)].sum())

    def get(self, index: int) -> Tensor | None:
        """Return the pixels of an image, uint8 ``(C, H, W)``, as a view that must not be changed.

        Args:
            index: The image's index.

        Returns:
            The pixels, or ``None`` if they are not decoded yet.
        """
        index = range(len(self.shapes))[index]  # the byte behind the last one is a pixel
        mapped = self._mapped()
        return None if mapped is None or not mapped[index] else self._view(mapped, index)

    def put(self, index: int, pixels: Tensor) -> None:
        """Keep the pixels of an image.

        Args:
            index: The image's index.
            pixels: uint8 ``(C, H, W)`` of the image's shape.
        """
        index = range(len(self.shapes))[index]
        mapped = self._mapped()
        if mapped is not None:
            self._view(mapped, index).copy_(pixels)
            mapped[index] = 1  # last, so that no process reads half an image

    def _view(self, mapped: Tensor, index: int) -> Tensor:
        start, end = self._starts[index], self._starts[index + 1]
        return mapped[start:end].view(self.shapes[index])

    def _mapped(self) -> Tensor | None:
        """Map the file; ``None`` if another process has removed it, and nothing is kept then."""
        if self._bytes is None and not self._gone:
            try:
                if self.path.stat().st_size != self.nbytes:  # torch would create or stretch it
                    raise OSError("it has another size now")
                self._bytes = torch.from_file(
                    str(self.path), shared=True, size=self.nbytes, dtype=torch.uint8
                )
            except (OSError, RuntimeError) as error:
                self._gone = True
                warnings.warn(
                    f"{self.path}: the decoded images cannot be kept there: {error}. They are "
                    "decoded again in each epoch.",
                    stacklevel=4,
                )
        return self._bytes

    def __getstate__(self) -> dict[str, object]:
        # another process maps the file itself
        return {**self.__dict__, "_bytes": None, "owner": None}


def decoded_name(paths: Sequence[str], how: str) -> str:
    """Return the name of the file of decoded images, a hash of everything that decides its content.

    Args:
        paths: The image files; their times and sizes are hashed too.
        how: How they are decoded.
    """
    facts = [(os.path.abspath(path), (found := os.stat(path)).st_mtime_ns, found.st_size)
             for path in paths]  # fmt: skip
    libraries = [version("pillow"), version("torchvision"), version("timm")]
    content = json.dumps([2, libraries, how, facts]).encode()
    return f"{hashlib.sha256(content).hexdigest()[:32]}.pixels"


def _reserve(path: Path, size: int) -> None:
    """Create a file of zeros with its space allocated; the first of several processes does."""
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
    """Allocate the space of a file on the disk, if the file system supports it.

    Otherwise, writing to a mapped file kills the process when the disk is full.
    """
    if not size or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system without this
            raise
