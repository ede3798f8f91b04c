"""Image files of many formats and kinds, and the pixels that a person sees in each."""

import struct
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image

LOSSY = 12
"""How far a pixel of a lossy format may be off."""


class Seen(NamedTuple):
    """A file, its pixels in RGB, how far off they may be, or why it is refused."""

    name: str
    pixels: np.ndarray | None
    near: int = 0
    refused: str = ""


def scene():
    """Return a small picture without symmetries: (10, 14, 3), and no pixel of it is white."""
    y, x = np.mgrid[0:10, 0:14]
    return np.stack([10 + 16 * x, 5 + 20 * y, 6 * x + 9 * y], -1).astype(np.uint8)


TURNS = {
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.swapaxes(np.rot90(a, 2), 0, 1),
    8: lambda a: np.rot90(a, 1),
}
"""By orientation in EXIF, what shows the stored pixels upright (EXIF 2.32, 4.6.5)."""


def write_zoo(folder):
    """Write the files; return what is seen in each, by its name without a suffix."""
    folder.mkdir(parents=True, exist_ok=True)
    rgb = scene()
    colour = Image.fromarray(rgb)
    gray = np.asarray(colour.convert("L"))
    as_rgb = np.repeat(gray[..., None], 3, -1)
    found = {}

    def keep(name, image, pixels, near=0, refused="", **options):
        key = name.partition(".")[0]
        assert key not in found
        if isinstance(image, bytes):
            (folder / name).write_bytes(image)
        else:
            image.save(folder / name, **options)
        found[key] = Seen(name, pixels, near, refused)

    # plain
    for suffix in ("png", "bmp", "ppm", "tga", "qoi", "pcx", "sgi", "tiff", "dds"):
        keep(f"{suffix}_rgb.{suffix}", colour, rgb)
    keep("webp_rgb.webp", colour, rgb, lossless=True)
    keep("jp2_rgb.jp2", colour, rgb)
    keep("jpeg_rgb.JPG", colour, rgb, LOSSY, quality=95, subsampling=0)
    keep("jfif_rgb.jfif", colour, rgb, LOSSY, format="JPEG", quality=95, subsampling=0)
    keep("avif_rgb.avif", colour, rgb, LOSSY, quality=95, subsampling="4:4:4")
    keep("jpeg_gray.jpg", colour.convert("L"), as_rgb, LOSSY, quality=95)
    keep("png_gray.png", colour.convert("L"), as_rgb)
    keep("png_bits.png", Image.fromarray(gray > 100), 255 * (as_rgb > 100))
    # several frames: the first
    others = [Image.fromarray(255 - rgb)]
    for suffix in ("apng", "mpo"):
        near, more = (0, {}) if suffix == "apng" else (LOSSY, {"quality": 95, "subsampling": 0})
        keep(f"{suffix}_frames.{suffix}", colour, rgb, near, save_all=True,
             append_images=others, **more)  # fmt: skip
    few = colour.quantize(32)
    shown = np.asarray(few.convert("RGB"))
    keep("gif_frames.gif", few, shown, save_all=True, append_images=[few.rotate(180)])
    # palettes and other colour spaces
    keep("gif_palette.gif", few, shown)
    keep("png_palette.png", few, shown)
    cmyk = colour.convert("CMYK")
    keep("tiff_cmyk.tif", cmyk, np.asarray(cmyk.convert("RGB")))
    keep("jpeg_cmyk.jpeg", cmyk, np.asarray(cmyk.convert("RGB")), LOSSY, quality=95)
    # transparency: white, whatever is beneath
    alpha = np.full(gray.shape, 255, np.uint8)
    alpha[:, :4], alpha[:, 4:6] = 0, 100
    share = alpha[..., None] / 255
    seen = np.rint(rgb * share + 255 * (1 - share)).astype(np.uint8)
    rgba = Image.fromarray(np.dstack([rgb, alpha]))
    keep("png_alpha.png", rgba, seen, 1)
    keep("webp_alpha.webp", rgba, seen, 1, lossless=True, exact=True)
    keep("tiff_alpha.tif", rgba, seen, 1)
    seen_gray = np.rint(as_rgb * share + 255 * (1 - share)).astype(np.uint8)
    keep("png_gray_alpha.png", Image.fromarray(np.dstack([gray, alpha])), seen_gray, 1)
    first = few.getpixel((0, 0))
    holes = np.where(np.asarray(few)[..., None] == first, 255, shown)
    keep("png_palette_alpha.png", few, holes, transparency=first)
    keep("gif_alpha.gif", few, holes, transparency=first)
    key = tuple(int(v) for v in rgb[3, 5])
    keyed = np.where((rgb == key).all(-1, keepdims=True), 255, rgb)
    keep("png_colour_key.png", colour, keyed, transparency=key)
    # more levels than 256
    deep = gray.astype(np.uint16) * 257
    keep("png_16_bits.png", Image.fromarray(deep), as_rgb)
    keep("png_16_bits_rgb.png", _png_of_16_bits(rgb), rgb)
    keep("tiff_16_bits.tif", Image.fromarray(deep), as_rgb)
    keep("tiff_16_bits_inverse.tif", Image.fromarray(65535 - deep), as_rgb, tiffinfo={262: 0})
    keep("pgm_16_bits.pgm", b"P5 14 10 65535\n" + deep.astype(">u2").tobytes(), as_rgb)
    refused = r"set value_range=\[BLACK,WHITE\]"
    keep("tiff_floats.tif", Image.fromarray(gray / np.float32(255)), None, refused=refused)
    keep("tiff_32_bits.tif", Image.fromarray(gray.astype(np.int32)), None, refused=refused)
    keep("pfm_floats.pfm", Image.fromarray(gray / np.float32(255)), None, refused=refused)
    # turned by the camera
    for orientation, upright in TURNS.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        name = f"jpeg_turned_{orientation}.jpg"
        keep(name, colour, upright(rgb), LOSSY, quality=95, subsampling=0, exif=exif)
    exif[0x0112] = 6
    for suffix, more in (("png", {}), ("webp", {"lossless": True}), ("tiff", {})):
        keep(f"{suffix}_turned.{suffix}", colour, TURNS[6](rgb), exif=exif, **more)
    near = {"quality": 95, "subsampling": "4:4:4"}
    keep("avif_turned.avif", colour, TURNS[6](rgb), LOSSY, exif=exif, **near)
    return found


def _png_of_16_bits(rgb):
    """Write a PNG of 16 bits a channel, which Pillow reads but does not write."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    height, width, _ = rgb.shape
    rows = (rgb.astype(">u2") * 257).astype(">u2").reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
