"""Define one style for every picture, as a file or as a part of a page (extra: viz).

A picture in a file is light. In a page, each colour of the style is a variable of the page's style
sheet, so that one picture serves a light and a dark page; text is text, which can be selected.
"""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from lightning_peft.errors import require
from lightning_peft.system.atomic import written_whole

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

__all__ = [
    "COLOURS", "DOT", "PAGE", "SOFT", "Key", "hover", "log_axis", "markup",
    "name_points", "new_figure", "save_figure", "series", "short", "style", "swatch", "with_keys",
]  # fmt: skip

TEXT, SOFT, LINE, PAGE = "#1f2328", "#59636e", "#d1d9e0", "#ffffff"
COLOURS = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#bf3989", "#0e7490", "#876000", "#57606a")

VARIABLES = {TEXT: "--text", SOFT: "--soft", LINE: "--line", PAGE: "--page"}
VARIABLES |= {colour: f"--c{i}" for i, colour in enumerate(COLOURS)}
"""The name of each colour in the style sheet of a page."""

STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": SOFT,
    "axes.formatter.useoffset": False,
    "axes.grid": True,
    "axes.labelcolor": TEXT,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.dpi": 130,
    "font.family": "DejaVu Sans",  # comes with matplotlib, and is wider than most
    "font.size": 9,
    "grid.alpha": 0.6,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",
    "text.color": TEXT,
    "text.parse_math": False,  # a `$` in a class or an override begins no formula
    "xtick.bottom": False,
    "xtick.labelcolor": SOFT,
    "xtick.labelsize": 8,
    "xtick.minor.bottom": False,
    "ytick.labelcolor": SOFT,
    "ytick.labelsize": 8,
    "ytick.left": False,
}

DOT = 13.0
"""The diameter of a point that holds a number, in points."""

HOVER = "hover:"
NOT_OF_XML = re.compile(r"[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

NEAR = ((9, 6), (-9, 6), (9, -6), (-9, -6), (0, 12), (0, -12))
"""The places of a name relative to its point: an offset to the right and up, in points."""

Key = tuple["Line2D", str]
"""The mark of a series, and its name."""


@contextmanager
def style() -> Iterator[None]:
    """Use the package's style, not the user's; every drawing function runs inside of it.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    with (
        require("matplotlib.style", "viz").context(["default", STYLE]),
        warnings.catch_warnings(),
    ):
        # what the font lacks is a box in a file; a browser has other fonts
        warnings.filterwarnings("ignore", message="Glyph ")
        yield


def new_figure(
    width: float = 7.2, height: float = 4.1, layout: str | None = "constrained"
) -> tuple[Figure, Axes]:
    """Return a new figure without pyplot: no global state, no display.

    Args:
        width: In inches.
        height: In inches.
        layout: Who lays out the axes; ``None`` for the caller.

    Returns:
        The figure, and its axes.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    require("matplotlib.figure", "viz")
    from lightning_peft.cli.comparing.png import PngFigure

    new: Any = PngFigure(figsize=(width, height), layout=layout)  # type: ignore[arg-type]
    return new, new.add_subplot()


@style()
def save_figure(figure: Figure, path: Path, keys: Sequence[Key] = ()) -> Path:
    """Write a figure as a PNG.

    Args:
        figure: The figure.
        path: The PNG to write.
        keys: Series that are explained beside it.

    Returns:
        The path.
    """
    with_keys(figure, keys)
    with written_whole(path) as temporary:
        figure.savefig(temporary)
    return path


@style()
def with_keys(figure: Figure, keys: Sequence[Key]) -> Figure:
    """Explain series beside a figure, which becomes wider.

    Args:
        figure: The figure.
        keys: The mark and the name of each series; none changes nothing.

    Returns:
        The same figure.
    """
    _clean_texts(figure)
    if keys:
        legend = figure.legend(
            [handle for handle, _ in keys],
            [textwrap.fill(clean(text), 50) for _, text in keys],
            loc="outside right center", fontsize=8, frameon=False, markerscale=0.6,
        )  # fmt: skip
        figure.draw_without_rendering()
        box = legend.get_window_extent()
        width, height = figure.get_size_inches()
        figure.set_size_inches(width + box.width / figure.dpi, max(height, box.height / figure.dpi))
    return figure


@style()
def markup(figure: Figure, title: str, description: str = "") -> str:
    """Return a figure as SVG that is safe to be put into a page.

    Args:
        figure: The figure.
        title: The title, which no other picture of the page has.
        description: What the picture shows, for readers who cannot see it.
    """
    _clean_texts(figure)
    file = io.BytesIO()
    # the salt keeps names apart that two pictures of a page would share
    with require("matplotlib", "viz").rc_context({"svg.hashsalt": clean(title)}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    drawn = ElementTree.fromstring(file.getvalue())
    words = {"class": "plot", "role": "img", "aria-label": clean(f"{title}. {description}".strip())}
    root = ElementTree.Element("svg", {**words, "viewBox": drawn.attrib["viewBox"]})
    for part in drawn:  # neither metadata nor a style sheet, which would be the whole page's
        if part.tag.endswith("}g") or part.find("{*}clipPath") is not None:
            root.append(part)
    for element in list(root.iter()):
        _rewrite(element)
    return ElementTree.tostring(root, encoding="unicode")


def _rewrite(element: ElementTree.Element) -> None:
    """Replace colours by their names, add the hover texts, and remove empty elements."""
    element.tag = element.tag.rpartition("}")[2]
    element.tail = None
    if element.tag != "text":
        element.text = None
    attributes, element.attrib = element.attrib, {}
    for key, value in attributes.items():
        if key == "style":
            value = re.sub("#[0-9a-f]{6}", lambda found: _variable(found[0]), value)
        elif key == "d":
            value = re.sub(r"(\.\d\d)\d+", r"\1", " ".join(value.split()))
        elif key == "id" and element.tag == "g":
            if value.startswith(HOVER):
                title = ElementTree.Element("title")
                title.text = value.removeprefix(HOVER)
                element.insert(0, title)
            continue
        element.set(key.rpartition("}")[2], value)


def _variable(colour: str) -> str:
    return f"var({VARIABLES[colour]})" if colour in VARIABLES else colour


def hover(artist: Artist, text: str) -> None:
    """Show a text when the pointer is over an element of a page."""
    artist.set_gid(HOVER + clean(text))


def clean(text: str) -> str:
    """Replace the characters that XML cannot hold; the others are escaped when they are written."""
    return NOT_OF_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def short(text: str, most: int = 60) -> str:
    """Cut a text; an axis has no room for a label of more than 60 letters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _clean_texts(figure: Figure) -> None:
    """Replace the characters that neither XML nor a font can hold, in every text of a figure."""
    for text in figure.findobj(require("matplotlib.text", "viz").Text):
        text.set_text(clean(text.get_text()))


def series(number: int) -> dict[str, Any]:
    """Return colour and dashes of a series: those after the last colour have them again, dashed."""
    again = number >= len(COLOURS)
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": "--" if again else "-"}


def swatch(handle: Line2D) -> str:
    """Return the CSS of the mark of a series in a page: its dot, or a piece of its line."""
    kind = {"-": "solid", "--": "dashed", ":": "dotted"}.get(str(handle.get_linestyle()))
    colour = _variable(str(handle.get_color()))
    if kind:
        return f"width: 26px; border-top: 2px {kind} {colour}"
    return f"width: .7em; height: .7em; border-radius: 50%; background: {colour}"


def log_axis(axes: Axes, values: Iterable[float]) -> None:
    """Make the x axis logarithmic, with room around some values and marks at round ones.

    Args:
        axes: The axes.
        values: What the axis has to hold; at least one, all above 0.
    """
    ticker = require("matplotlib.ticker", "viz")
    found = list(values)
    low, high = min(found), max(found)
    axes.set_xscale("log")
    room = max((high / low) ** 0.1, 1.4)
    low, high = low / room, high * room
    axes.set_xlim(low, high)
    marks = (1,) if high / low > 300 else (1, 2, 5) if high / low > 6 else range(1, 10)
    thousands = ticker.EngFormatter()
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=marks, numticks=99))
    axes.xaxis.set_major_formatter(lambda x, _: thousands(x) if x >= 1 else f"{x:.4g}")
    axes.minorticks_off()


def name_points(
    figure: Figure,
    axes: Axes,
    points: Sequence[tuple[float, float, str]],
    others: Sequence[Artist] = (),
) -> bool:
    """Write a name next to each point, where it covers neither points nor other names.

    Everything else has to be drawn before, since it moves the axes.

    Args:
        figure: The figure.
        axes: Those of its axes that hold the points.
        points: Where each point is, and its name.
        others: What no name may cover either.

    Returns:
        Whether there was room for all of them; if not, none is written.
    """
    _clean_texts(figure)
    figure.draw_without_rendering()
    bbox = require("matplotlib.transforms", "viz").Bbox
    radius = DOT / 2 * figure.dpi / 72
    middles = axes.transData.transform([(x, y) for x, y, _ in points])
    taken: list[Bbox] = [bbox([middle - radius, middle + radius]) for middle in middles]
    taken += [other.get_window_extent() for other in others]
    written: list[Annotation] = []
    for x, y, text in points:
        for right, up in NEAR:
            label = axes.annotate(
                clean(text), (x, y), xytext=(right, up), textcoords="offset points", va="center",
                ha="left" if right > 0 else "right" if right else "center", fontsize=8, zorder=2.5,
                bbox={"facecolor": PAGE, "edgecolor": "none", "pad": 0.5, "alpha": 0.8},
            )  # fmt: skip
            label.set_in_layout(False)
            box = label.get_window_extent()
            inside = axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max)
            if inside and not box.count_overlaps(taken):
                taken.append(box)
                written.append(label)
                break
            label.remove()
    if len(written) < len(points):
        for label in written:
            label.remove()
    return len(written) == len(points)
