"""Draw the pictures of a comparison, for its page and as files (extra: viz)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lightning_peft.cli.comparing import figures
from lightning_peft.cli.comparing.comparison import Comparison, Row
from lightning_peft.cli.comparing.curves import Band, band, thin
from lightning_peft.cli.comparing.swept import Swept
from lightning_peft.cli.comparing.wording import duration, score
from lightning_peft.cli.runs.log import RATE, Curve

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

__all__ = ["Chart", "against", "by_number", "curves_of", "learning_curves", "rates"]

MOST_SERIES = 12
"""More curves than this in one plot cannot be told apart."""

MOST_NAMES = 12
"""The names of more points than this are next to the picture, even if it has room for them."""

MOST_MARKS = 10
"""More values than this are not all written below an axis."""

Logs = Mapping[int, Sequence[Mapping[str, Curve]]]
"""By the position of a row: what each of its runs logged."""


@dataclass(frozen=True)
class Chart:
    """A picture with its title and notes.

    Attributes:
        title: The title.
        figure: The picture.
        description: What the picture shows, for readers who cannot see it.
        note: How to read it.
        keys: The mark of each series and its name, if the picture does not name them.
    """

    title: str
    figure: Figure
    description: str
    note: str = ""
    keys: tuple[figures.Key, ...] = ()

    @property
    def svg(self) -> str:
        """Return the picture as markup that is safe in a page."""
        return figures.markup(self.figure, self.title, self.description)


@figures.style()
def against(comparison: Comparison, quantity: str, name: str) -> Chart | None:
    """Draw the metric against a cost, with the Pareto front.

    Args:
        comparison: The comparison to draw.
        quantity: The attribute of a row that is the cost.
        name: The name of the cost.

    Returns:
        The chart, or ``None`` if no row has both.
    """
    rows = [(i, row) for i, row in enumerate(comparison.rows) if getattr(row, quantity)]
    scale = comparison.scale
    placed = [(i, row, *_place(row, quantity, scale)) for i, row in rows if row.accuracy]
    if not placed:
        return None
    front = comparison.front(quantity)
    drawn, axes = figures.new_figure()
    keys: list[figures.Key] = []
    for i, row, x, y, spread in placed:
        cost = duration(x) if name.endswith("time (s)") else f"{x:,.0f} {name}"
        told = f"{i + 1}. {row.label}: {score(row.accuracy, comparison.metric)}, {cost}"
        color = figures.series(i)["color"]
        bars = axes.errorbar(
            x, y, yerr=spread or None, color=color, ecolor=(color, 0.6), fmt="o",
            markersize=figures.DOT,
        )  # fmt: skip
        number = axes.annotate(
            str(i + 1), (x, y), ha="center", va="center", fontsize=7, weight="bold",
            color=figures.PAGE, zorder=5,
        )  # fmt: skip
        for part in (bars.lines[0], number):
            figures.hover(part, told)
        keys.append((bars.lines[0], f"{i + 1}. {row.label}"))
    # between two points only what the cheaper one reaches is known to be had
    stairs = zip(*(_place(row, quantity, scale)[:2] for row in front), strict=True)
    axes.step(*stairs, where="post", color=figures.SOFT, linestyle="--", linewidth=1)
    levels: list[Artist] = []
    for row in comparison.rows:
        if row.baseline and row.accuracy:
            y, right = scale * row.accuracy.mean, len(levels) % 2 == 0
            axes.axhline(y, color=figures.SOFT, linestyle=":", linewidth=1)
            level = axes.annotate(  # right and left in turn: these lines are often close
                figures.short(row.label), (float(right), y), xycoords=("axes fraction", "data"),
                xytext=(-4 if right else 4, 2), textcoords="offset points", va="bottom",
                ha="right" if right else "left", fontsize=8, color=figures.SOFT,
            )  # fmt: skip
            levels.append(level)
    figures.log_axis(axes, [x for _, _, x, _, _ in placed])
    axes.margins(y=0.1)
    axes.set_xlabel(name)
    axes.set_ylabel(figures.short(comparison.axis))
    points = [(x, y, row.label) for _, row, x, y, _ in placed]
    if len(points) <= MOST_NAMES and figures.name_points(drawn, axes, points, levels):
        keys.clear()
    best = ", ".join(row.label for row in front)
    return Chart(
        f"{_words(comparison.metric)} against {name}",
        drawn,
        f"{len(placed)} points; on the Pareto front: {best}",
        "The numbers are the ranks of the table. Bars are one standard deviation over the seeds. "
        f"The steps are the Pareto front, where no row costs less and is as good: {best}.",
        tuple(keys),
    )


def _words(metric: str) -> str:
    return metric.replace("/", " ")


def _place(row: Row, quantity: str, scale: float) -> tuple[float, float, float]:
    """Return a row's cost, its metric and the metric's deviation as they are shown."""
    assert row.accuracy is not None
    floor = 1.0 if quantity == "trained" else 1e-6  # a logarithm is taken of it
    cost = max(getattr(row, quantity).mean, floor)
    return cost, scale * row.accuracy.mean, scale * row.accuracy.deviation


@figures.style()
def by_number(comparison: Comparison, swept: Swept) -> Chart:
    """Draw the metric against a swept number, a line for each method.

    Args:
        comparison: The comparison to draw.
        swept: The swept number.
    """
    drawn, axes = figures.new_figure()
    keys: list[figures.Key] = []
    for i, line in enumerate(swept.lines[:MOST_SERIES]):
        looks = {"color": figures.SOFT, "linestyle": ":"} if line.baseline else figures.series(i)
        found = [row.accuracy for _, row in line.points if row.accuracy]
        bars = axes.errorbar(
            [value for value, _ in line.points], [comparison.scale * each.mean for each in found],
            yerr=[comparison.scale * each.deviation for each in found], capsize=3, elinewidth=0.8,
            marker="" if line.baseline else "o", markersize=5, **looks,
        )  # fmt: skip
        figures.hover(bars.lines[0], line.label)
        keys.append((bars.lines[0], line.label))
    if swept.is_log:
        figures.log_axis(axes, swept.values)
    if len(swept.values) <= MOST_MARKS:
        axes.set_xticks(swept.values, [f"{value:g}" for value in swept.values])
    if len(swept.lines) > MOST_SERIES:
        text = f"the first {MOST_SERIES} of {len(swept.lines)} lines"
        axes.set_title(text, loc="right", fontsize=8, color=figures.SOFT)
    axes.margins(y=0.1)
    axes.set_xlabel(figures.short(swept.key))
    axes.set_ylabel(figures.short(comparison.axis))
    last = [
        f"{text}: {score(line.points[-1][1].accuracy, comparison.metric)}"
        for line, (_, text) in zip(swept.lines, keys, strict=False)
    ]
    return Chart(
        f"{_words(comparison.metric)} by {swept.key}",
        drawn,
        f"at the largest value of each line, {'; '.join(last)}",
        "Lines are means over the seeds, bars one standard deviation to each side.",
        tuple(keys),
    )


def learning_curves(comparison: Comparison, logs: Logs) -> list[Chart]:
    """Draw the validation metric and the training loss by step.

    Args:
        comparison: The comparison to draw.
        logs: The logs of the runs.
    """
    bare = comparison.metric.partition("/")[2]
    name = f"validation {bare}" + (" (%)" if comparison.scale != 1 else "")
    drawn = [
        curves_of(comparison, logs, f"val/{bare}", name, scale=comparison.scale),
        curves_of(comparison, logs, "train/loss", "training loss"),
    ]
    return [chart for chart in drawn if chart is not None]


def rates(comparison: Comparison, logs: Logs) -> Chart | None:
    """Draw the actual learning rate of the first run of each row.

    Args:
        comparison: The comparison to draw.
        logs: The logs of the runs.
    """
    first = {i: found[:1] for i, found in logs.items()}
    chart = curves_of(comparison, first, RATE, "learning rate")
    if chart is None:
        return None
    note = (
        "The rate of each step; the highest if there are several parameter groups. Lines of rows "
        "with the same schedule coincide."
    )
    return replace(chart, note=f"{note} {_left_out(comparison, logs)}".strip())


@figures.style()
def curves_of(
    comparison: Comparison, logs: Logs, key: str, name: str, *, scale: float = 1.0
) -> Chart | None:
    """Draw the values that were logged under one name by step, a line for each row.

    Args:
        comparison: The comparison to draw.
        logs: The logs of the runs.
        key: The name under which the values were logged.
        name: The name on the axis.
        scale: The factor of the values.

    Returns:
        The chart, or ``None`` if nothing was logged under that name.
    """
    bands: list[tuple[int, Row, Band]] = []
    for i, row in list(enumerate(comparison.rows))[:MOST_SERIES]:
        found = band(log.get(key, ()) for log in logs.get(i, ()))
        if found is not None:
            bands.append((i, row, _scaled(found, scale)))
    if not bands:
        return None
    drawn, axes = figures.new_figure()
    keys: list[figures.Key] = []
    for i, row, b in bands:
        looks = figures.series(i)
        steps, low = zip(*b.low, strict=True)
        if len(steps) > 1:
            high = [y for _, y in b.high]
            axes.fill_between(steps, low, high, color=looks["color"], alpha=0.14, linewidth=0)
        marker = "o" if len(b.mean) == 1 else ""
        (line,) = axes.plot(*zip(*b.mean, strict=True), marker=marker, zorder=3, **looks)
        figures.hover(line, row.label)
        keys.append((line, row.label))
    axes.margins(x=0.02)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("step")
    axes.set_ylabel(figures.short(name))
    several = any(sum(key in log for log in found) > 1 for found in logs.values())
    note = "Lines are means over a row's runs, areas reach from the lowest to the highest run."
    parts = [note] if several else []
    if left_out := _left_out(comparison, logs):
        parts.append(left_out)
    return Chart(
        f"{name.removesuffix(' (%)')} by step",
        drawn,
        "; ".join(f"{row.label} ends at {b.mean[-1][1]:.3g}" for _, row, b in bands),
        " ".join(parts),
        tuple(keys),
    )


def _left_out(comparison: Comparison, logs: Logs) -> str:
    more = sum(i >= MOST_SERIES and bool(found) for i, found in logs.items())
    return f"The first {MOST_SERIES} rows; {more} more are left out." if more else ""


def _scaled(found: Band, scale: float) -> Band:
    low, mean, high = (
        tuple((x, scale * y) for x, y in thin(curve))
        for curve in (found.low, found.mean, found.high)
    )
    return Band(mean=mean, low=low, high=high)
