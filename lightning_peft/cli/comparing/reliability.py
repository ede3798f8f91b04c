"""Draw the reliability diagram of a run, from the bins that its test left."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from lightning_peft.cli.comparing import figures
from lightning_peft.cli.comparing.charts import Chart
from lightning_peft.evaluation.calibration import ReliabilityBin, expected_error
from lightning_peft.files.plain_file import read_text

__all__ = ["read_bins", "reliability_chart"]

FILE = "reliability.csv"
MOST_BINS = 200
MOST_COUNTS = 25
"""With more bins than this, their counts would overlap."""
FIELDS = ("low", "high", "confidence", "accuracy", "count")


def read_bins(directory: Path) -> tuple[ReliabilityBin, ...]:
    """Return the bins of a run.

    Args:
        directory: The run's directory.

    Returns:
        The bins; none if there is no such file, or another program wrote it.
    """
    found = []
    try:
        with io.StringIO(read_text(directory / FILE), newline="") as file:
            for line in csv.DictReader(file):
                low, high, confidence, accuracy = (float(line[name]) for name in FIELDS[:4])
                found.append(ReliabilityBin(low, high, confidence, accuracy, int(line["count"])))
                if len(found) > MOST_BINS:
                    return ()
    except (OSError, ValueError, TypeError, KeyError, csv.Error):
        return ()
    return tuple(found) if all(_is_sound(item) for item in found) else ()


def _is_sound(item: ReliabilityBin) -> bool:
    parts = (item.low, item.high, item.confidence, item.accuracy)
    sound = all(math.isfinite(part) and 0 <= part <= 1 for part in parts)
    return sound and item.low < item.high and item.count > 0


@figures.style()
def reliability_chart(
    bins: Sequence[ReliabilityBin], task: str = "multiclass", noun: str = "images"
) -> Chart | None:
    """Draw how often predictions of each confidence are correct.

    Args:
        bins: The bins of :func:`read_bins`.
        task: The task of the run, which defines the confidence.
        noun: ``"images"`` or ``"texts"``.

    Returns:
        The chart, or ``None`` without bins.
    """
    if not bins:
        return None
    total = sum(item.count for item in bins)
    error = expected_error(bins)
    sure, true = (
        ("confidence (%)", "right (%)")
        if task == "multiclass"
        else ("probability of yes (%)", "is yes (%)")
    )
    told = [
        f"{100 * item.low:.0f} to {100 * item.high:.0f} %: {item.count:,} of {total:,}, sure by "
        f"{100 * item.confidence:.1f} %, true {100 * item.accuracy:.1f} %"
        for item in bins
    ]
    drawn, axes = figures.new_figure()
    for item, text in zip(bins, told, strict=True):
        (column,) = axes.bar(
            100 * item.low, 100 * item.accuracy, 100 * (item.high - item.low), align="edge",
            facecolor=(figures.COLOURS[0], 0.18), edgecolor=figures.PAGE,
        )  # fmt: skip
        figures.hover(column, text)
    axes.plot([0, 100], [0, 100], color=figures.SOFT, linestyle="--", linewidth=1.2)
    found = zip(*((100 * item.confidence, 100 * item.accuracy) for item in bins), strict=True)
    axes.plot(*found, color=figures.COLOURS[1], marker="o", markersize=4, zorder=3)
    axes.set_xlim(-2, 102)
    axes.set_ylim(-2, 106)  # a number stands above its column
    axes.set_xlabel(sure)
    axes.set_ylabel(true)
    for item in bins if len(bins) <= MOST_COUNTS else ():
        axes.annotate(
            f"{item.count:,}", (50 * (item.low + item.high), 100 * item.accuracy), xytext=(0, 3),
            textcoords="offset points", ha="center", fontsize=8,
        )  # fmt: skip
    pooled = " over all labels together" if task == "multilabel" else ""
    each = f"labels of {noun}" if task == "multilabel" else noun
    note = (
        "On the dashed line the model is calibrated; below it, the model is overconfident. "
        f"Columns are the bins, the line joins their means; {total:,} {each}, expected calibration "
        f"error {error:.4f}{pooled}. The numbers are the counts of the bins; few say little."
    )
    return Chart(
        "Reliability of the test's predictions",
        drawn,
        f"expected calibration error {error:.4f}; " + "; ".join(told),
        note,
    )
