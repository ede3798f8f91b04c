"""The one way from an image file to pixels, for training, evaluation, ranking and prediction.

What a file means is decided here: which way is up, which number is white, what is seen through
transparent pixels.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning_peft.errors import DataError

__all__ = [
    "PLUGINS",
    "Decoding",
    "UnreadableImageError",
    "decode",
    "open_image",
    "readable_suffixes",
    "size_of",
    "why",
]

PLUGINS = {
    ".heic": ("pillow_heif", "pillow-heif"),
    ".heif": ("pillow_heif", "pillow-heif"),
    ".jxl": ("pillow_jxl", "pillow-jxl-plugin"),
}
"""Suffixes that Pillow reads with another package: its module, and its name on the index."""

_NOT_DECODED = frozenset({"EPS", "IPTC", "MPEG", "WMF"})
"""Formats that Pillow opens but does not decode by itself, or not as pictures."""

_DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
"""Modes with more levels than 256, of which Pillow's own conversion cuts all above 255."""

_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
"""Tags of TIFF, and a value of the second."""


class UnreadableImageError(DataError):
    """An image file that cannot be decoded, in one line also if a loading process found it.

    torch raises the error of a loading process again, with its whole traceback as the message.
    """

    def __init__(self, told: str) -> None:
        super().__init__(told.rpartition(f"{type(self).__name__}: ")[2].strip())


class NoRangeError(ValueError):
    """Nothing says which values of an image are black and white."""


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How an image file is read.

    Attributes:
        mode: PIL mode of the result, ``"L"`` or ``"RGB"``.
        value_range: The values that are black and white in images with more levels than 256 (16
            bits, 32 bits, floats). None takes what the format says, and refuses where it says
            nothing, as for floats.
    """

    mode: str
    value_range: tuple[float, float] | None = None

    def __call__(self, image: Any) -> Any:
        """Return the pixels that a person would see.

        The orientation in the EXIF data is applied, transparent pixels show white, and of several
        frames the first is taken. Palettes, CMYK and other colour spaces are converted by Pillow.

        Args:
            image: An opened PIL image; it may be changed.

        Returns:
            A PIL image in :attr:`mode`.

        Raises:
            NoRangeError: If nothing says which values are black and white.
        """
        from PIL import ImageOps

        image.load()
        with suppress(Exception):  # EXIF data that cannot be read says nothing about the pixels
            ImageOps.exif_transpose(image, in_place=True)
        if image.mode in _DEEP:
            return self._scaled(image).convert(self.mode)
        if image.has_transparency_data:
            return _on_white(image).convert(self.mode)
        return image.convert(self.mode)

    def _scaled(self, image: Any) -> Any:
        import numpy as np
        from PIL import Image

        values = np.asarray(image).astype(np.float64)
        black, white = self.value_range or _range_of(image, values)
        if not np.isfinite(values).all():
            raise ValueError("it has pixels that are no numbers (NaN or infinite)")
        levels = (values - black) * (255 / (white - black))
        return Image.fromarray(np.rint(levels.clip(0, 255)).astype(np.uint8))


def decode(path: str | Path, decoding: Decoding) -> Any:
    """Read an image file.

    Args:
        path: The file.
        decoding: How it is read.

    Returns:
        A PIL image.

    Raises:
        UnreadableImageError: If it cannot be decoded; one line with the path.
    """
    try:
        with open_image(path) as image:
            return decoding(image)
    except Exception as error:  # a broken file can make PIL's decoders raise anything
        advice = "Remove or repair it; verify='decode' finds all such files before training."
        told = f"Expected a readable image, got {path}: {why(error)}."
        if not isinstance(error, NoRangeError):
            told = f"{told} {advice}"
        raise UnreadableImageError(told) from error


def why(error: Exception) -> str:
    """Return why a file could not be decoded, in one line."""
    told = " ".join(str(error).split())
    if isinstance(error, NoRangeError):
        return told
    return f"{type(error).__name__}: {told}" if told else type(error).__name__


def open_image(path: str | Path) -> Any:
    """Open an image file with Pillow and the plugins that are installed."""
    from PIL import Image

    _register_plugins()
    return Image.open(path)


def size_of(path: str | Path) -> tuple[int, int]:
    """Return width and height of an image as :func:`decode` returns it, from its header."""
    from PIL.ExifTags import Base

    with open_image(path) as image:
        width, height = image.size
        orientation = 1
        with suppress(Exception):
            orientation = image.getexif().get(Base.Orientation, 1)
        # a TIFF says its size as it is after being turned
        turned = orientation in (5, 6, 7, 8) and image.format != "TIFF"
        return (height, width) if turned else (width, height)


@functools.cache
def readable_suffixes() -> frozenset[str]:
    """Return the suffixes of image files that are read on this machine, such as ``".png"``."""
    from PIL import Image, ImageFile

    _register_plugins()
    Image.init()

    def decodes(name: str) -> bool:
        if name in _NOT_DECODED or name not in (*Image.OPEN, "MPO"):
            return False
        factory = Image.OPEN["JPEG" if name == "MPO" else name][0]
        return not (isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile))

    found = {suffix for suffix, name in Image.registered_extensions().items() if decodes(name)}
    return frozenset(found)


@functools.cache
def _register_plugins() -> None:
    for module in {module for module, _ in PLUGINS.values()}:
        with suppress(ImportError):
            plugin = importlib.import_module(module)
            getattr(plugin, "register_heif_opener", lambda: None)()


def _range_of(image: Any, values: Any) -> tuple[float, float]:
    """Return the values that a format defines as black and white.

    Raises:
        NoRangeError: If it defines none.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        tags = getattr(image, "tag_v2", {})
        bits = tags.get(_BITS, 16)
        white = float(2 ** (bits[0] if isinstance(bits, tuple) else bits) - 1)
        return (white, 0.0) if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else (0.0, white)
    kind = "floats" if image.mode == "F" else "integers of 32 bits or with signs"
    raise NoRangeError(
        f"its values are {kind}, here from {values.min():g} to {values.max():g}, and nothing says "
        "which are black and white: set value_range=[BLACK,WHITE] (on the command line "
        "data.value_range=[BLACK,WHITE])"
    )


def _on_white(image: Any) -> Any:
    """Return an image in RGB, with white behind its transparent pixels."""
    from PIL import Image

    if image.mode == "La":  # Pillow has no way from here to RGBA
        image = image.convert("LA")
    seen = image.convert("RGBA")
    white = Image.new("RGBA", seen.size, "white")
    white.alpha_composite(seen)
    return white.convert("RGB")
