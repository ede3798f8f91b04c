"""A figure that a notebook shows, also where nothing has imported pyplot."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

__all__ = ["PngFigure"]


class PngFigure(Figure):
    """A figure of matplotlib."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()
