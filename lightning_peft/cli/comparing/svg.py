"""Plots as inline SVG, for a page that brings no library, in colours that the page chooses.

What is drawn carries class names (``s0`` is the first series) and no colours, so that one plot
serves a light and a dark page. Text is text: it can be selected, and a screen reader reads it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

__all__ = ["COLOURS", "Axis", "Plot", "linear_axis", "log_axis", "series_class"]

COLOURS = 8
"""How many series have a colour of their own; those after them have it again, dashed."""

WIDTH, HEIGHT = 680.0, 380.0
RIGHT, TOP, BOTTOM = 16.0, 14.0, 50.0
LEAST_LEFT, LABEL, GAP = 64.0, 26.0, 8.0
"""Left of the plot: no less than this; the room of the label, and what is before the axis."""
CHARACTER, LINE = 6.6, 15.0
"""Width of a character and height of a line, roughly, to keep names from covering each other."""

NOT_OF_XML = re.compile(r"[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

Box = tuple[float, float, float, float]
"""Left, top, right and bottom."""


@dataclass(frozen=True)
class Axis:
    """A range of values, and how it is marked.

    Attributes:
        low: The value at the start of the axis; for a logarithmic one, of its logarithm.
        high: The same at the end.
        ticks: ``(value, text)``.
        label: What is on the axis.
        is_log: Whether it is logarithmic.
    """

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    label: str
    is_log: bool = False

    def part(self, value: float) -> float:
        """Give where a value is: 0 at the start of the axis, 1 at its end."""
        at = math.log10(value) if self.is_log else value
        return (at - self.low) / (self.high - self.low)


def linear_axis(values: Iterable[float], label: str, *, margin: float = 0.06) -> Axis:
    """Make an axis that holds some values, marked at multiples of 1, 2 or 5 times a power of 10.

    Args:
        values: What it has to hold; at least one.
        label: What is on the axis.
        margin: The part of the range that is left free at each end.
    """
    found = list(values)
    low, high = min(found), max(found)
    room = margin * (high - low) or max(abs(high) * 0.05, 1e-6)
    low, high = low - room, high + room
    rough = (high - low) / 7
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step)
    ticks = [k * step for k in range(first, math.floor(high / step) + 1)]
    return Axis(low, high, tuple((tick, f"{round(tick, 12):.6g}") for tick in ticks), label)


def log_axis(values: Iterable[float], label: str, *, margin: float = 0.1) -> Axis:
    """Make a logarithmic axis that holds some positive values.

    Args:
        values: What it has to hold; at least one, all above 0.
        label: What is on the axis.
        margin: The part of the range that is left free at each end.
    """
    found = [math.log10(value) for value in values]
    low, high = min(found), max(found)
    room = max(margin * (high - low), 0.15)
    low, high = low - room, high + room
    marks = (1,) if high - low > 2.5 else (1, 2, 5) if high - low > 0.8 else range(1, 10)
    ticks = [
        mark * 10.0**power
        for power in range(math.floor(low), math.ceil(high) + 1)
        for mark in marks
        if low <= math.log10(mark * 10.0**power) <= high
    ]
    return Axis(low, high, tuple((tick, _short(tick)) for tick in ticks), label, is_log=True)


def _short(value: float) -> str:
    for unit, text in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= unit:
            return f"{value / unit:.4g}{text}"
    return f"{value:.4g}"


class Plot:
    """One plot.

    Args:
        x: The axis from left to right.
        y: The axis from bottom to top.
        title: What it is, for those who do not see it.
        description: What there is to see in it, for them.
    """

    def __init__(self, x: Axis, y: Axis, title: str, description: str = "") -> None:
        self.x, self.y = x, y
        widest = CHARACTER * max((len(text) for _, text in y.ticks), default=0)
        self.left = max(LEAST_LEFT, LABEL + widest + GAP)  # the label is clear of the numbers
        self._root = ElementTree.Element(
            "svg",
            viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}",
            role="img",
            attrib={"class": "plot", "aria-label": f"{title}. {description}".strip()},
        )
        self._taken: list[Box] = []
        self._draw_axes()

    def markup(self) -> str:
        """Give the SVG as text, safe to be put into a page."""
        return ElementTree.tostring(self._root, encoding="unicode")

    def line(
        self, points: Sequence[tuple[float, float]], series: int, *, name: str = "", kind: str = ""
    ) -> None:
        """Draw a line through points.

        Args:
            points: ``(x, y)`` in the units of the axes.
            series: The number of the series, which gives the colour.
            name: What is shown when a pointer rests on it.
            kind: Another class name, such as ``"front"``.
        """
        places = self._places(points)
        if len(places) == 1:
            places *= 2  # so that round ends make a dot of it
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        names = " ".join(filter(None, ("line", series_class(series), kind)))
        line = self._add("polyline", {"points": path, "class": names})
        if name:
            ElementTree.SubElement(line, "title").text = _clean(name)

    def area(
        self,
        low: Sequence[tuple[float, float]],
        high: Sequence[tuple[float, float]],
        series: int,
    ) -> None:
        """Fill what is between two lines."""
        outline = [*self._places(low), *reversed(self._places(high))]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in outline)
        self._add("polygon", {"points": path, "class": f"area {series_class(series)}"})

    def column(self, left: float, right: float, height: float, series: int, *, name: str) -> None:
        """Draw a column that stands on the axis.

        Args:
            left: Where it begins, in the units of the x axis.
            right: Where it ends.
            height: In the units of the y axis.
            series: The number of the series, which gives the colour.
            name: What is shown when a pointer rests on it.
        """
        corners = [(left, 0.0), (left, height), (right, height), (right, 0.0)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in self._places(corners))
        names = f"column {series_class(series)}"
        ElementTree.SubElement(
            self._add("polygon", {"points": path, "class": names}), "title"
        ).text = _clean(name)

    def point(
        self, x: float, y: float, series: int, *, spread: float, mark: str, name: str
    ) -> None:
        """Draw a point with a mark in it and a bar for its spread.

        Args:
            x: In the units of the axis.
            y: In the units of the axis.
            series: The number of the series, which gives the colour.
            spread: How far the bar reaches to each side; 0 for none.
            mark: A few characters to be written on the point.
            name: What is shown when a pointer rests on it.
        """
        [(px, py)] = self._places([(x, y)])
        group = self._add("g", {"class": series_class(series)})
        ElementTree.SubElement(group, "title").text = _clean(name)
        if spread:
            [(_, low), (_, high)] = self._places([(x, y - spread), (x, y + spread)])
            _element(group, "line", x1=px, x2=px, y1=low, y2=high, kind="bar")
        _element(group, "circle", cx=px, cy=py, r=9.0, kind="dot")
        _element(group, "text", x=px, y=py + 3.6, kind="mark").text = _clean(mark)
        self._taken.append((px - 10, py - 10, px + 10, py + 10))

    def name_point(self, x: float, y: float, text: str) -> bool:
        """Write a name beside a point, where it covers nothing; all points have to be drawn.

        Returns:
            Whether there was room.
        """
        [(px, py)] = self._places([(x, y)])
        middle = py + 4
        for place in (
            (px + 12, middle - 9, "start"),
            (px - 12, middle - 9, "end"),
            (px + 12, middle + 9, "start"),
            (px - 12, middle + 9, "end"),
            (px, py - 14, "middle"),
            (px, py + 23, "middle"),
        ):
            box = _box(text, *place)
            inside = box[0] >= self.left and box[2] <= WIDTH - RIGHT and box[1] >= 0
            if inside and box[3] <= HEIGHT - BOTTOM and self._is_free(box):
                self._write(text, *place)
                return True
        return False

    def level(self, y: float, text: str) -> None:
        """Draw a reference line over the whole width, with its name."""
        [(_, py)] = self._places([(0.0 if not self.x.is_log else 1.0, y)])
        _element(self._root, "line", x1=self.left, x2=WIDTH - RIGHT, y1=py, y2=py, kind="level")
        places = [
            (x, baseline, anchor)
            for x, anchor in ((WIDTH - RIGHT - 2, "end"), (self.left + 4, "start"))
            for baseline in (py - 4, py + 13)
        ]
        free = [place for place in places if self._is_free(_box(text, *place))]
        self._write(text, *(free or places)[0])

    def _draw_axes(self) -> None:
        bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        for value, text in self.y.ticks:
            y = bottom - self.y.part(value) * (bottom - TOP)
            _element(self._root, "line", x1=self.left, x2=right, y1=y, y2=y, kind="grid")
            _element(self._root, "text", x=self.left - GAP, y=y + 4, kind="tick end").text = text
        for value, text in self.x.ticks:
            x = self.left + self.x.part(value) * (right - self.left)
            _element(self._root, "line", x1=x, x2=x, y1=TOP, y2=bottom, kind="grid")
            _element(self._root, "text", x=x, y=bottom + 18, kind="tick middle").text = text
        _element(self._root, "line", x1=self.left, x2=right, y1=bottom, y2=bottom, kind="axis")
        _element(self._root, "line", x1=self.left, x2=self.left, y1=TOP, y2=bottom, kind="axis")
        middle = (self.left + right) / 2
        label = _element(self._root, "text", x=middle, y=HEIGHT - 10, kind="label middle")
        label.text = _clean(self.x.label)
        label = _element(self._root, "text", x=0.0, y=0.0, kind="label middle")
        label.set("transform", f"translate(15 {(TOP + bottom) / 2:g}) rotate(-90)")
        label.text = _clean(self.y.label)

    def _places(self, points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
        bottom = HEIGHT - BOTTOM
        return [
            (
                self.left + self.x.part(x) * (WIDTH - RIGHT - self.left),
                bottom - self.y.part(y) * (bottom - TOP),
            )
            for x, y in points
        ]

    def _is_free(self, box: Box) -> bool:
        return not any(
            box[0] < taken[2] and taken[0] < box[2] and box[1] < taken[3] and taken[1] < box[3]
            for taken in self._taken
        )

    def _write(self, text: str, x: float, y: float, anchor: str) -> None:
        """Write a name, and let nothing else be written over it."""
        _element(self._root, "text", x=x, y=y, kind=f"name {anchor}").text = _clean(text)
        self._taken.append(_box(text, x, y, anchor))

    def _add(self, tag: str, attributes: dict[str, str]) -> ElementTree.Element:
        return ElementTree.SubElement(self._root, tag, attributes)


def series_class(series: int) -> str:
    """Name the classes of a series: one of the colours, dashed from the second round on."""
    return f"s{series % COLOURS}" + (" again" if series >= COLOURS else "")


def _element(
    parent: ElementTree.Element, tag: str, *, kind: str, **numbers: float
) -> ElementTree.Element:
    attributes = {key: f"{value:.1f}" for key, value in numbers.items()}
    return ElementTree.SubElement(parent, tag, {**attributes, "class": kind})


def _box(text: str, x: float, y: float, anchor: str) -> Box:
    width = CHARACTER * len(text)
    left = x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
    return left, y - LINE + 4, left + width, y + 3


def _clean(text: str) -> str:
    """Leave out the characters that XML cannot hold; what is escaped, the library does."""
    return NOT_OF_XML.sub("\N{REPLACEMENT CHARACTER}", text)
