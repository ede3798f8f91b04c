"""The pictures that a run and a sweep leave (extra: viz)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_peft.errors import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from lightning_peft.cli.comparing.comparison import Comparison, Row
    from lightning_peft.cli.comparing.swept import Swept

__all__ = ["accuracy_against_parameters", "accuracy_by_number", "predictions"]

MOST_LABELS = 8
"""With more points than this, their names stand beside the picture."""

RIGHT, WRONG = "#1a7f37", "#cf222e"


def accuracy_against_parameters(comparison: Comparison, path: Path) -> Path | None:
    """Draw each row's accuracy against how many parameters it trained.

    Args:
        comparison: What to draw.
        path: The PNG to write.

    Returns:
        The path, or ``None`` where no row has both numbers.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    points = [row for row in comparison.rows if row.accuracy and row.trained]
    if not points:
        return None
    many = len(points) > MOST_LABELS
    figure, axes = _figure(8.6 if many else 7.0, 5.2 if many else 4.4)
    scale = comparison.scale
    _numbered(axes, points, scale) if many else _named(axes, points, scale)
    front = [_place(row, scale) for row in comparison.front() if row.trained]
    # between two points only what the cheaper one reaches is known to be had
    axes.step(
        [x for x, _, _ in front], [y for _, y, _ in front], where="post",
        color="0.6", linestyle="--", linewidth=1, zorder=0,
    )  # fmt: skip
    for row in comparison.rows:
        if row.baseline and row.accuracy:
            y = scale * row.accuracy.mean
            axes.axhline(y, color="0.6", linestyle=":", linewidth=1)
            axes.annotate(
                row.label, (0.995, y), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                fontsize=8, color="0.4",
            )  # fmt: skip
    axes.set_xscale("log")
    axes.margins(x=0.18, y=0.12)
    axes.set_xlabel("trained parameters")
    axes.set_ylabel(comparison.axis)
    axes.grid(visible=True, which="major", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return _save(figure, path)


def accuracy_by_number(comparison: Comparison, swept: Swept, path: Path) -> Path:
    """Draw the metric against a number that was swept, a line for each method.

    Args:
        comparison: What the number is of.
        swept: The number.
        path: The PNG to write.

    Returns:
        The path.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    figure, axes = _figure(7.0, 4.4)
    for line in swept.lines:
        values = [value for value, _ in line.points]
        found = [row.accuracy for _, row in line.points if row.accuracy]
        axes.errorbar(
            values, [comparison.scale * spread.mean for spread in found],
            yerr=[comparison.scale * spread.deviation for spread in found],
            label=line.label, capsize=3, elinewidth=0.8, fmt=":" if line.baseline else "-o",
            color="0.6" if line.baseline else None,
        )  # fmt: skip
    if swept.is_log:
        axes.set_xscale("log")
    axes.set_xticks(swept.values, [f"{value:g}" for value in swept.values])
    axes.minorticks_off()
    axes.set_xlabel(swept.key)
    axes.set_ylabel(comparison.axis)
    axes.grid(visible=True, which="major", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return _save(figure, path)


def _named(axes: Axes, points: Sequence[Row], scale: float) -> None:
    """Draw points with their names beside them."""
    for row in points:
        x, y, spread = _place(row, scale)
        axes.errorbar(x, y, yerr=spread, fmt="o", capsize=3)
        axes.annotate(row.label, (x, y), xytext=(6, 5), textcoords="offset points", fontsize=9)


def _numbered(axes: Axes, points: Sequence[Row], scale: float) -> None:
    """Draw points with a number in each and the names beside the picture, where none overlap."""
    from matplotlib.lines import Line2D

    for number, row in enumerate(points, 1):
        x, y, spread = _place(row, scale)
        bars = axes.errorbar(x, y, yerr=spread, fmt="o", markersize=11, elinewidth=0.6)
        for bar in bars.lines[2]:
            bar.set_alpha(0.35)
        axes.annotate(
            str(number), (x, y), ha="center", va="center", fontsize=7, color="white", zorder=5
        )
    axes.legend(
        [Line2D([], [], linestyle="") for _ in points],
        [f"{number}  {row.label}" for number, row in enumerate(points, 1)],
        loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False,
        fontsize=8, handlelength=0, handletextpad=0,
    )  # fmt: skip


def _place(row: Row, scale: float) -> tuple[float, float, float | None]:
    """Give a row's parameters, its metric and the deviation, as they are shown."""
    assert row.accuracy is not None
    assert row.trained is not None
    spread = scale * row.accuracy.deviation or None
    return max(row.trained.mean, 1.0), scale * row.accuracy.mean, spread


def predictions(
    images: Tensor,
    labels: Sequence[int],
    probabilities: Tensor,
    class_names: Sequence[str],
    path: Path,
    *,
    columns: int = 8,
) -> Path:
    """Draw images with what was predicted for each: green where it is right, red where it is not.

    Args:
        images: ``(N, C, H, W)``, in any range.
        labels: The right class of each.
        probabilities: ``(N, classes)``.
        class_names: A name for each class.
        path: The PNG to write.
        columns: Images in a row.

    Returns:
        The path.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    rows = -(-len(images) // columns)
    width, height = 1.12, 1.3  # of a cell, where an image is 1 x 1: what is left is for the words
    figure, axes = _figure(1.15 * width * columns, 1.15 * height * rows, layout=None)
    axes.set_position((0.01, 0.01, 0.98, 0.98))
    axes.set_axis_off()
    axes.set_xlim(0, width * columns)
    axes.set_ylim(height * rows, 0)
    # one axes for all of it: an axes for each image takes seconds to lay out
    for position, image in enumerate(images.detach().float().cpu()):
        row, column = divmod(position, columns)
        left, top = column * width + (width - 1) / 2, row * height + (height - 1)
        low, high = image.min(), image.max()
        shown = ((image - low) / (high - low).clamp(min=1e-8)).permute(1, 2, 0).numpy()
        axes.imshow(
            shown[..., 0] if shown.shape[-1] == 1 else shown[..., :3],
            cmap="gray",
            extent=(left, left + 1, top + 1, top),
            aspect="auto",
        )
        share, chosen = probabilities[position].max(dim=0)
        right = int(chosen) == int(labels[position])
        text = f"{class_names[int(chosen)]}  {100 * float(share):.0f} %"
        if not right:
            text += f", is {class_names[int(labels[position])]}"
        axes.text(
            left + 0.5, top - 0.05, text, fontsize=8, ha="center", color=RIGHT if right else WRONG
        )
    axes.set_xlim(0, width * columns)  # imshow has moved them
    axes.set_ylim(height * rows, 0)
    return _save(figure, path)


def _figure(width: float, height: float, layout: str | None = "constrained") -> tuple[Figure, Axes]:
    """Make a figure without pyplot: no global state, no display."""
    figure: Figure = require("matplotlib.figure", "viz").Figure(
        figsize=(width, height), dpi=130, layout=layout
    )
    return figure, figure.add_subplot()


def _save(figure: Figure, path: Path) -> Path:
    _read_literally(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial.png")
    figure.savefig(partial)
    partial.replace(path)
    return path


def _read_literally(figure: Figure) -> None:
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
