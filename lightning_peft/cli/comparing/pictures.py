"""The pictures that a run and a sweep leave (extra: viz)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_peft.cli.comparing.figures import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lightning_peft.cli.comparing.comparison import Comparison, Row
    from lightning_peft.cli.comparing.swept import Swept

__all__ = ["accuracy_against_parameters", "accuracy_by_number"]

MOST_LABELS = 8
"""With more points than this, their names stand beside the picture."""


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
    figure, axes = new_figure(8.6 if many else 7.0, 5.2 if many else 4.4)
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
    return save_figure(figure, path)


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
    figure, axes = new_figure(7.0, 4.4)
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
    return save_figure(figure, path)


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
