"""Synthetic glyphs: the characters of matplotlib's bundled fonts, rendered to be deformed.

A glyph is kept as two distance fields rather than as a bitmap: the distance to its *outline*, and
the distance to its one-pixel *skeleton*. Warping a distance field and thresholding it afterwards
gives any stroke width, at any slant, without the jagged edges of a warped bitmap, and the skeleton
turns a typeface into pen strokes. ``deform`` draws the images.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_peft.errors import DataError, require

__all__ = ["GlyphBank", "character_classes", "render_bank"]

IMAGE_SIZE = 24  # pixels a side of a synthesized image
CANVAS = 56  # pixels a side of a distance field ...
BOX = 40  # ... of which the glyph's longer side takes this many; the rest is room to deform
PIXEL = IMAGE_SIZE / BOX  # distances are stored in pixels of the synthesized image

# Families are counted in file names; the STIX size variants and the display fonts hold no letters.
TRAIN_FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique",
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic",
    "STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta",
    "cmb10", "cmmi10", "cmss10", "cmti10", "cmtt10",
)  # fmt: skip
HELD_OUT_FONTS = ("DejaVuSerif-BoldItalic", "STIXGeneralItalic", "cmr10")

ALPHANUMERIC = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# Other scripts of the same fonts: more shapes to tell apart make better features.
_OTHER_SCRIPTS = (
    (0x391, 0x3A9),
    (0x3B1, 0x3C9),
    (0x410, 0x42F),
    (0x531, 0x587),
    (0x5D0, 0x5EA),
    (0x10D0, 0x10F6),
)
# How often a class is drawn. Latin letters and digits are what the backbone is mostly used for.
DIGIT_WEIGHT, LATIN_WEIGHT, OTHER_WEIGHT = 4.0, 1.5, 0.2
# Classes that cannot be told apart once size, slant and stroke width are free share one label.
# Capitals of other scripts that are drawn like a Latin letter are found by comparing renderings.
LOOK_ALIKES = ("0Oo", "1Il", "Cc", "Kk", "Pp", "Ss", "Uu", "Vv", "Ww", "Xx", "Zz", "Yy", "3З")


def character_classes() -> dict[str, str]:
    """The characters that are drawn and the label each one carries.

    Returns:
        Character to label, where the label is the first character of its group: ``"O"`` maps to
        ``"0"``. Digits and Latin letters come first.
    """
    merged = {c: group[0] for group in LOOK_ALIKES for c in group}
    classes = {c: merged.get(c, c) for c in ALPHANUMERIC}
    for first, last in _OTHER_SCRIPTS:
        classes |= {
            chr(code): chr(code)
            for code in range(first, last + 1)
            if unicodedata.category(chr(code)).startswith("L")
        }
    return classes


@dataclasses.dataclass(frozen=True)
class GlyphBank:
    """Rendered glyphs, ready to be deformed.

    Attributes:
        fields: Distance to the outline (negative inside) and to the skeleton, in pixels of the
            synthesized image, shape ``(N, 2, 56, 56)``.
        labels: Class of each glyph, shape ``(N,)``.
        fonts: Font file stem of each glyph.
        classes: Label characters, in the order of the class numbers.
    """

    fields: Tensor
    labels: Tensor
    fonts: tuple[str, ...]
    classes: tuple[str, ...]

    def chances(self) -> Tensor:
        """How often to draw each glyph, ``(N,)``, unnormalized: evenly within a class."""
        weights = torch.tensor(
            [
                DIGIT_WEIGHT if c in "0123456789" else LATIN_WEIGHT if c.isascii() else OTHER_WEIGHT
                for c in self.classes
            ]
        )
        count = torch.bincount(self.labels, minlength=len(self.classes)).clamp_min(1)
        return (weights / count)[self.labels]

    def select(self, fonts: Iterable[str], classes: Iterable[str] | None = None) -> GlyphBank:
        """The glyphs of some fonts, and of some classes; the classes keep their numbers."""
        wanted = set(fonts)
        labels = set(self.classes if classes is None else classes)
        rows = [
            i
            for i, (font, label) in enumerate(zip(self.fonts, self.labels.tolist(), strict=True))
            if font in wanted and self.classes[label] in labels
        ]
        if not rows:
            raise DataError(
                f"Expected fonts of this bank, {sorted(set(self.fonts))}, and classes that they "
                f"draw, got {sorted(wanted)} and {sorted(labels)}: name what was rendered."
            )
        kept = tuple(self.fonts[i] for i in rows)
        return GlyphBank(self.fields[rows], self.labels[rows], kept, self.classes)


def _matplotlib() -> tuple[Any, Path]:
    matplotlib = require("matplotlib", "viz")
    from matplotlib import ft2font

    return ft2font, Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def _rasterize(font: Any, code: int) -> Tensor | None:
    """One character as ink in [0, 1], cropped, its longer side ``BOX`` pixels, on the canvas."""
    font.set_text(chr(code), 0.0)
    font.draw_glyphs_to_bitmap(antialiased=True)
    image = torch.tensor(font.get_image().__array__(), dtype=torch.float32) / 255
    if not bool((image > 0.5).any()):
        return None
    rows, columns = (
        (image > 0.5).any(1).nonzero().flatten(),
        (image > 0.5).any(0).nonzero().flatten(),
    )
    image = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    factor = BOX / max(image.shape)
    size = [max(1, round(side * factor)) for side in image.shape]
    image = F.interpolate(image[None, None], size=size, mode="bilinear", antialias=True)[0, 0]
    top, left = (CANVAS - size[0]) // 2, (CANVAS - size[1]) // 2
    return F.pad(image, (left, CANVAS - size[1] - left, top, CANVAS - size[0] - top))


def _distance(mask: Tensor) -> Tensor:
    """Exact Euclidean distance of each pixel to the mask, ``(N, S, S)`` bool to float.

    Separable: squared distances are a min-plus convolution with a parabola along each axis.
    """
    steps = torch.arange(mask.shape[-1], dtype=torch.float32)
    parabola = (steps[:, None] - steps[None, :]) ** 2
    out = []
    for part in mask.split(8):  # small enough to stay in the cache
        squared = torch.where(part, 0.0, 1e6)
        for _ in range(2):
            squared = (squared.unsqueeze(-2) + parabola).amin(-1).transpose(1, 2)
        out.append(squared.sqrt())
    return torch.cat(out)


def _skeletonize(mask: Tensor) -> Tensor:
    """Zhang-Suen thinning of a batch of masks, ``(N, S, S)`` bool."""
    ink = mask.clone()
    changed = True
    while changed:
        changed = False
        for phase in (0, 1):
            padded = F.pad(ink, (1, 1, 1, 1))
            size = ink.shape[-1]
            offsets = ((0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0), (0, 0))
            ring = [padded[:, y : y + size, x : x + size] for y, x in offsets]  # clockwise from N
            neighbours = sum(p.to(torch.uint8) for p in ring)
            turns = sum(
                (~a & b).to(torch.uint8) for a, b in zip(ring, ring[1:] + ring[:1], strict=True)
            )
            north, east, south, west = ring[0], ring[2], ring[4], ring[6]
            if phase == 0:
                edge = ~(north & east & south) & ~(east & south & west)
            else:
                edge = ~(north & east & west) & ~(north & south & west)
            remove = ink & (neighbours >= 2) & (neighbours <= 6) & (turns == 1) & edge
            changed = changed or bool(remove.any())
            ink = ink & ~remove
    return ink


def render_bank(
    fonts: Iterable[str] = TRAIN_FONTS + HELD_OUT_FONTS,
    characters: Iterable[str] | None = None,
) -> GlyphBank:
    """Render characters in matplotlib's bundled fonts.

    A font is skipped for a character that it lacks. A letter of another script that is drawn as
    one already rendered (Cyrillic ``A``) joins that class.

    Args:
        fonts: Font file stems.
        characters: Keys of ``character_classes()``, all by default.

    Returns:
        The bank; its order depends only on the arguments.

    Raises:
        MissingExtraError: matplotlib is not installed.
        DataError: A font is not among matplotlib's, or a character not among the classes.
    """
    ft2font, folder = _matplotlib()
    label_of = character_classes()
    wanted = list(label_of) if characters is None else list(characters)
    fonts = list(fonts)
    missing = [font for font in fonts if not (folder / f"{font}.ttf").is_file()]
    unknown = [c for c in wanted if c not in label_of]
    if missing or unknown:
        raise DataError(
            f"Expected fonts bundled with matplotlib and characters of character_classes(), got "
            f"unknown fonts {missing} and unknown characters {unknown}: remove them."
        )
    images: list[Tensor] = []
    names: list[str] = []
    origin: list[str] = []
    for stem in fonts:
        font = ft2font.FT2Font(str(folder / f"{stem}.ttf"))
        font.set_size(96, 72)
        codes = sorted(font.get_charmap())
        styled: dict[str, list[int]] = {}
        for code in codes:
            # Circled and squared characters normalize to the bare one but are another shape.
            if 0x2460 <= code <= 0x24FF:
                continue
            styled.setdefault(unicodedata.normalize("NFKC", chr(code)), []).append(code)
        for character in wanted:
            for code in styled.get(character, []):
                image = _rasterize(font, code)
                if image is not None:
                    images.append(image)
                    names.append(label_of[character])
                    origin.append(stem)
    ink = torch.stack(images) > 0.5
    names = _merge_identical(ink, names)
    classes = tuple(name for name in dict.fromkeys(label_of.values()) if name in set(names))
    outline = (_distance(ink) - 0.5).clamp_min(0) - (_distance(~ink) - 0.5).clamp_min(0)
    skeleton = _distance(torch.cat([_skeletonize(part) for part in ink.split(256)]))
    return GlyphBank(
        torch.stack([outline, skeleton], dim=1) * PIXEL,
        torch.tensor([classes.index(name) for name in names]),
        tuple(origin),
        classes,
    )


def _merge_identical(ink: Tensor, names: list[str]) -> list[str]:
    """Label glyphs of the very same shape alike, and with them a class that mostly has such."""
    rank = {name: i for i, name in enumerate(dict.fromkeys(character_classes().values()))}
    shapes = [image.numpy().tobytes() for image in ink]
    owner: dict[bytes, str] = {}
    for shape, name in sorted(zip(shapes, names, strict=True), key=lambda pair: rank[pair[1]]):
        owner.setdefault(shape, name)
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for shape, name in zip(shapes, names, strict=True):
        votes[name][owner[shape]] += 1
    most = {name: count.most_common(1)[0] for name, count in votes.items()}
    return [
        most[name][0] if 2 * most[name][1] > votes[name].total() else owner[shape]
        for shape, name in zip(shapes, names, strict=True)
    ]
