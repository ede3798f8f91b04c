"""Checking image files before training."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from lightning_peft.data.decode import Decoding, open_image, why

__all__ = ["Verify", "unreadable"]

Verify = Literal["header", "decode", "none"]
_PROGRESS_ABOVE = 2000  # files; fewer are checked before a progress bar could be read

_JPEG_END, _GIF_END = b"\xff\xd9", b";"
_STRIPS = ((273, 279), (324, 325))
"""Tags of TIFF: where strips or tiles begin, and how long each is."""


def unreadable(paths: Sequence[str], verify: Verify, decoding: Decoding) -> list[str]:
    """Find the files that are not readable images.

    Args:
        paths: Image files.
        verify: ``"header"`` opens each file and checks what can be checked without decoding it: the
            checksums of a PNG, the end or the length of a JPEG, GIF, WebP, BMP or TIFF; what seems
            to be cut off is decoded. ``"decode"`` decodes all. ``"none"`` checks nothing.
        decoding: How the files will be read.

    Returns:
        One line for each unreadable file.
    """
    if verify == "none":
        return []
    with ThreadPoolExecutor(8) as pool:
        checks: Iterable[str | None] = pool.map(
            lambda path: _problem(path, verify, decoding), paths
        )
        if len(paths) > _PROGRESS_ABOVE:
            from rich.progress import track

            checks = track(checks, f"Checking {len(paths):,} images", total=len(paths))
        return [problem for problem in checks if problem]


def _problem(path: str, verify: Verify, decoding: Decoding) -> str | None:
    try:
        with open_image(path) as image:
            needs_range = image.mode in ("I", "F") and decoding.value_range is None
            if verify == "decode" or needs_range or _seems_cut(image, path):
                decoding(image)
            else:
                image.verify()
    except Exception as error:  # a broken file can make PIL's decoders raise anything
        return f"{path}: {why(error)}"
    return None


def _seems_cut(image: Any, path: str) -> bool:
    """Whether a file lacks its end; of other formats only a decoder could say it."""
    check = _ENDS.get(image.format)
    return check is not None and check(image, path)


def _cut_jpeg(image: Any, path: str) -> bool:
    return not _last(path, 32).rstrip(b"\0\r\n").endswith(_JPEG_END)


def _cut_gif(image: Any, path: str) -> bool:
    return not _last(path, 32).rstrip(b"\0").endswith(_GIF_END)


def _cut_riff(image: Any, path: str) -> bool:
    return _number(path, 4) + 8 > os.path.getsize(path)


def _cut_bmp(image: Any, path: str) -> bool:
    return _number(path, 2) > os.path.getsize(path)


def _cut_tiff(image: Any, path: str) -> bool:
    tags, size = image.tag_v2, os.path.getsize(path)
    return any(
        start + length > size
        for starts, lengths in _STRIPS
        for start, length in zip(tags.get(starts, ()), tags.get(lengths, ()), strict=False)
    )


def _last(path: str, count: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(-min(count, os.path.getsize(path)), os.SEEK_END)
        return file.read()


def _number(path: str, start: int) -> int:
    """Return four bytes of a file as a number, the lowest first."""
    with open(path, "rb") as file:
        file.seek(start)
        return int.from_bytes(file.read(4), "little")


_ENDS: Mapping[str | None, Callable[[Any, str], bool]] = {
    "JPEG": _cut_jpeg,
    "GIF": _cut_gif,
    "WEBP": _cut_riff,
    "BMP": _cut_bmp,
    "TIFF": _cut_tiff,
}
