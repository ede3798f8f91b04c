"""Draw the images and the learning rate of a run, and its predictions (extra: viz)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_peft.cli.comparing.figures import (
    COLOURS,
    SOFT,
    new_figure,
    save_figure,
    short,
    style,
)
from lightning_peft.lightning.schedules import Multiplier

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "learning_rate", "learning_rate_figure", "predictions", "predictions_figure", "samples",
    "samples_figure",
]  # fmt: skip

LEAST_PIXELS = 72
"""Smaller images are enlarged to at least this size, in pixels."""

GAP = 6
MOST_LETTERS = 16

RIGHT, WRONG = "#1a7f37", "#cf222e"


def samples(
    before: Tensor, after: Tensor, class_names: Sequence[str], path: Path, *, title: str
) -> Path:
    """Write the picture of :func:`samples_figure` to a PNG, and return its path."""
    return save_figure(samples_figure(before, after, class_names, title=title), path)


@style()
def samples_figure(
    before: Tensor, after: Tensor, class_names: Sequence[str], *, title: str
) -> Figure:
    """Draw a row for each class: an image as it is, and augmented a few times.

    Args:
        before: Images in [0, 1], one for each row, ``(R, C, H, W)``.
        after: The same images augmented, ``(R, K, C, H, W)``.
        class_names: A name for each row.
        title: The title above the augmented images.

    Returns:
        The figure.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    variants = after.shape[1]
    canvas, side = _montage(before, after)
    height, width = canvas.shape[:2]
    names = [short(name, MOST_LETTERS) for name in class_names]
    margin = 10 + 7 * max(map(len, names))  # for the names, in pixels of the canvas
    scale = 0.0105
    drawn, axes = new_figure((width + margin) * scale, (height + 42) * scale, layout=None)
    total = (width + margin, height + 42)
    axes.set_position((margin / total[0], 8 / total[1], width / total[0], height / total[1]))
    axes.imshow(canvas.numpy(), interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    for row, name in enumerate(names):
        y = row * (side[0] + GAP) + side[0] / 2
        axes.text(-8, y, name, ha="right", va="center", fontsize=8.5)
    axes.text(side[1] / 2, -8, "as it is", ha="center", va="bottom", fontsize=8.5, color=SOFT)
    middle = side[1] + 3 * GAP + variants * (side[1] + GAP) / 2
    axes.text(middle, -8, title, ha="center", va="bottom", fontsize=8.5, color=SOFT)
    return drawn


def _montage(before: Tensor, after: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Return images laid out on white, ``(height, width, 3)``, and the size of one image."""
    rows, variants, channels, height, width = after.shape
    factor = max(1, -(-LEAST_PIXELS // min(height, width)))
    cells = torch.cat([before.unsqueeze(1), after], 1).clamp(0, 1).flatten(0, 1)
    cells = F.interpolate(cells, scale_factor=factor, mode="nearest")
    cells = cells.expand(-1, 3, -1, -1) if channels == 1 else cells[:, :3]
    height, width = height * factor, width * factor
    cells = cells.unflatten(0, (rows, variants + 1)).permute(0, 1, 3, 4, 2)
    # the first column stands apart from the others
    wide = (variants + 1) * (width + GAP) - GAP + 2 * GAP
    canvas = torch.ones(rows * (height + GAP) - GAP, wide, 3)
    for row in range(rows):
        for column in range(variants + 1):
            top = row * (height + GAP)
            left = column * (width + GAP) + (2 * GAP if column else 0)
            canvas[top : top + height, left : left + width] = cells[row, column]
    return canvas, (height, width)


def learning_rate(
    multiplier: Multiplier,
    rates: Mapping[str, float],
    path: Path,
    *,
    title: str,
    begins: Mapping[str, int] | None = None,
) -> Path:
    """Write the picture of :func:`learning_rate_figure` to a PNG, and return its path."""
    drawn = learning_rate_figure(multiplier, rates, title=title, begins=begins)
    return save_figure(drawn, path)


@style()
def learning_rate_figure(
    multiplier: Multiplier,
    rates: Mapping[str, float],
    *,
    title: str,
    begins: Mapping[str, int] | None = None,
) -> Figure:
    """Draw the learning rate at every step of a run.

    Args:
        multiplier: The schedule of the run.
        rates: The full learning rate of each parameter group, by the group's name.
        title: The title of the picture.
        begins: The step at which training of an initially frozen group begins, by its name: its
            line begins there, and the step is marked.

    Returns:
        The figure.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    begins = begins or {}
    total, warmup = multiplier.total_steps, multiplier.warmup_steps
    parts = [multiplier(step) for step in range(total)]
    lr = max(rates.values())
    drawn, axes = new_figure(7.2, 3.6)
    for number, (name, rate) in enumerate(sorted(rates.items(), key=lambda item: -item[1])):
        first = begins.get(name, 0)
        color, alpha = (
            (COLOURS[1], 1.0) if name in begins else (COLOURS[0], 1 - 0.8 * number / len(rates))
        )
        axes.plot(
            range(first, total), [rate * part for part in parts[first:]], linewidth=2,
            label=f"{name}: {rate:.3g}", color=color, alpha=alpha,
            marker="o" if total < 20 else None,
        )  # fmt: skip
        if name in begins:
            axes.axvline(first, color=color, linestyle=":", linewidth=1)
            axes.annotate(
                f"step {first}", (first, 1.08 * lr), xytext=(4, 0), textcoords="offset points",
                fontsize=8, color=color,
            )  # fmt: skip
    if len(rates) > 1:
        axes.legend(fontsize=7.5, frameon=False, loc="upper right")
    if warmup:
        axes.axvspan(0, warmup - 1, color=COLOURS[0], alpha=0.08, linewidth=0)
        axes.annotate(
            f"warm-up: {warmup} steps, {100 * warmup / total:.3g} %",
            (max(warmup - 1, 0), lr), xytext=(8, 6), textcoords="offset points", fontsize=8.5,
        )  # fmt: skip
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("learning rate")
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    axes.set_ylim(0, 1.15 * lr)
    axes.margins(x=0.02)
    return drawn


def predictions(
    images: Tensor,
    labels: Sequence[int],
    probabilities: Tensor,
    class_names: Sequence[str],
    path: Path,
    *,
    columns: int = 8,
) -> Path:
    """Write the picture of :func:`predictions_figure` to a PNG, and return its path."""
    drawn = predictions_figure(images, labels, probabilities, class_names, columns=columns)
    return save_figure(drawn, path)


@style()
def predictions_figure(
    images: Tensor,
    labels: Sequence[int],
    probabilities: Tensor,
    class_names: Sequence[str],
    *,
    columns: int = 8,
) -> Figure:
    """Draw images with their predictions, green if correct and red if wrong.

    Args:
        images: ``(N, C, H, W)``, in any range.
        labels: The true class of each.
        probabilities: ``(N, classes)``.
        class_names: A name for each class.
        columns: Images in a row.

    Returns:
        The figure.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    rows = -(-len(images) // columns)
    width, height = 1.12, 1.3  # of a cell, where an image is 1 x 1: what is left is for the words
    drawn, axes = new_figure(1.15 * width * columns, 1.15 * height * rows, layout=None)
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
    return drawn
