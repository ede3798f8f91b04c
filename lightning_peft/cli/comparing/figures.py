"""Figures of matplotlib: made, labelled literally, and saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lightning_peft.errors import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


__all__ = ["new_figure", "read_literally", "save_figure"]


def new_figure(
    width: float, height: float, layout: str | None = "constrained"
) -> tuple[Figure, Axes]:
    """Make a figure without pyplot: no global state, no display."""
    figure: Figure = require("matplotlib.figure", "viz").Figure(
        figsize=(width, height), dpi=130, layout=layout
    )
    return figure, figure.add_subplot()


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, whole or not at all; names in it are shown as they are."""
    read_literally(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial.png")
    figure.savefig(partial)
    partial.replace(path)
    return path


def read_literally(figure: Figure) -> None:
    """Show names as they are: a ``$`` in a class or an override begins no formula."""
    text = require("matplotlib.text", "viz").Text
    # what an axis writes itself has powers of ten in it, which are formulas
    own = {
        id(tick)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.findobj(text)
        if tick is not axis.label
    }
    for found in figure.findobj(text):
        if id(found) not in own:
            found.set_parse_math(False)
