"""The plots of a comparison's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lightning_peft.cli.comparing.comparison import Comparison, Row
from lightning_peft.cli.comparing.curves import Band, band, thin
from lightning_peft.cli.comparing.svg import Axis, Plot, linear_axis, log_axis, series_class
from lightning_peft.cli.comparing.swept import Swept
from lightning_peft.cli.comparing.wording import duration, score
from lightning_peft.cli.runs.log import RATE, Curve

__all__ = ["Chart", "against", "by_number", "curves_of", "learning_curves", "rates"]

MOST_SERIES = 12
"""More curves than this in one plot cannot be told apart."""

MOST_MARKS = 10
"""More values than this are not all written below an axis."""

Logs = Mapping[int, Sequence[Mapping[str, Curve]]]
"""By the position of a row: what each of its runs logged."""


@dataclass(frozen=True)
class Chart:
    """A plot and the words around it.

    Attributes:
        title: What it is.
        svg: Markup that is safe to be put into a page.
        note: What has to be known to read it.
        legend: ``(class names, text)`` of each series, where the plot does not name them.
    """

    title: str
    svg: str
    note: str = ""
    legend: tuple[tuple[str, str], ...] = ()


def against(comparison: Comparison, quantity: str, name: str) -> Chart | None:
    """Plot the metric against what it costs, with the Pareto front.

    Args:
        comparison: What to plot.
        quantity: The attribute of a row that is the cost.
        name: What the cost is called.

    Returns:
        The chart, or ``None`` where no row has both.
    """
    rows = [(i, row) for i, row in enumerate(comparison.rows) if getattr(row, quantity)]
    scale = comparison.scale
    placed = [(i, row, *_place(row, quantity, scale)) for i, row in rows if row.accuracy]
    if not placed:
        return None
    levels = [row for row in comparison.rows if row.baseline and row.accuracy]
    heights = [y + sign * spread for *_, y, spread in placed for sign in (-1, 1)]
    heights += [scale * row.accuracy.mean for row in levels if row.accuracy]
    metric = comparison.metric.replace("/", " ")
    front = comparison.front(quantity)
    best = ", ".join(row.label for row in front)
    title = f"{metric} against {name}"
    plot = Plot(
        log_axis([x for _, _, x, _, _ in placed], name),
        linear_axis(heights, comparison.axis, margin=0.1),
        title,
        f"{len(placed)} points; on the Pareto front: {best}",
    )
    for row in levels:
        plot.level(scale * row.accuracy.mean if row.accuracy else 0.0, row.label)
    plot.line(_stairs([_place(row, quantity, scale)[:2] for row in front]), 0, kind="front")
    for i, row, x, y, spread in placed:
        cost = duration(x) if name.endswith("time (s)") else f"{x:,.0f} {name}"
        told = f"{i + 1}. {row.label}: {score(row.accuracy, comparison.metric)}, {cost}"
        plot.point(x, y, i, spread=spread, mark=str(i + 1), name=told)
    for _, row, x, y, _ in placed:
        plot.name_point(x, y, row.label)
    note = (
        "The numbers are the ranks of the table. Bars are one standard deviation over the seeds. "
        f"The stairs are the Pareto front, where nothing costs less and is as good: {best}."
    )
    return Chart(title, plot.markup(), note)


def _place(row: Row, quantity: str, scale: float) -> tuple[float, float, float]:
    """Give a row's cost, and its metric and the deviation of that as they are shown."""
    assert row.accuracy is not None
    floor = 1.0 if quantity == "trained" else 1e-6  # a logarithm is taken of it
    cost = max(getattr(row, quantity).mean, floor)
    return cost, scale * row.accuracy.mean, scale * row.accuracy.deviation


def _stairs(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Between two points of a front only what the cheaper one reaches is known to be had."""
    found: list[tuple[float, float]] = []
    for x, y in points:
        if found:
            found.append((x, found[-1][1]))
        found.append((x, y))
    return found


def by_number(comparison: Comparison, swept: Swept) -> Chart:
    """Plot the metric against a number that was swept, a line for each method.

    Args:
        comparison: What the number is of.
        swept: The number.
    """
    metric = comparison.metric.replace("/", " ")
    shown = swept.lines[:MOST_SERIES]
    bands = [
        [(value, *_around(row, comparison.scale)) for value, row in line.points] for line in shown
    ]
    title = f"{metric} by {swept.key}"
    ends = [end for band_ in bands for _, *around in band_ for end in around]
    last = [
        f"{line.label}: {score(line.points[-1][1].accuracy, comparison.metric)}" for line in shown
    ]
    plot = Plot(
        _marked_axis(swept),
        linear_axis(ends, comparison.axis, margin=0.1),
        title,
        f"at the largest value of each line, {'; '.join(last)}",
    )
    for i, band_ in enumerate(bands):
        if len(band_) > 1:
            low, high = ([(p[0], p[k]) for p in band_] for k in (1, 3))
            plot.area(low, high, i)
    for i, (line, band_) in enumerate(zip(shown, bands, strict=True)):
        plot.line([(x, y) for x, _, y, _ in band_], i, name=line.label)
    note = "Lines are means over the seeds, areas one standard deviation to each side."
    if len(swept.lines) > MOST_SERIES:
        note += (
            f" The first {MOST_SERIES} lines; {len(swept.lines) - MOST_SERIES} more are left out."
        )
    legend = tuple((series_class(i), line.label) for i, line in enumerate(shown))
    return Chart(title, plot.markup(), note, legend)


def _around(row: Row, scale: float) -> tuple[float, float, float]:
    """Give the metric less its deviation, the metric, and the two together, as they are shown."""
    assert row.accuracy is not None
    mean, deviation = scale * row.accuracy.mean, scale * row.accuracy.deviation
    return mean - deviation, mean, mean + deviation


def _marked_axis(swept: Swept) -> Axis:
    """Make an axis that is marked at the values that were swept."""
    values = swept.values
    axis = log_axis(values, swept.key) if swept.is_log else linear_axis(values, swept.key)
    if len(values) > MOST_MARKS:
        return axis
    return replace(axis, ticks=tuple((value, f"{value:g}") for value in values))


def learning_curves(comparison: Comparison, logs: Logs) -> list[Chart]:
    """Plot how the metric in validation and the training loss went.

    Args:
        comparison: What to plot.
        logs: What the runs logged.
    """
    bare = comparison.metric.partition("/")[2]
    name = f"validation {bare}" + (" (%)" if comparison.scale != 1 else "")
    drawn = [
        curves_of(comparison, logs, f"val/{bare}", name, scale=comparison.scale),
        curves_of(comparison, logs, "train/loss", "training loss"),
    ]
    return [chart for chart in drawn if chart is not None]


def rates(comparison: Comparison, logs: Logs) -> Chart | None:
    """Plot the learning rate as it was, of the first run of each row.

    Args:
        comparison: What to plot.
        logs: What the runs logged.
    """
    first = {i: found[:1] for i, found in logs.items()}
    chart = curves_of(comparison, first, RATE, "learning rate")
    if chart is None:
        return None
    note = (
        "As each step used it; of several parameter groups, the highest. Rows of the same "
        "schedule lie on each other."
    )
    return Chart(
        chart.title, chart.svg, f"{note} {_left_out(comparison, logs)}".strip(), chart.legend
    )


def curves_of(
    comparison: Comparison, logs: Logs, key: str, name: str, *, scale: float = 1.0
) -> Chart | None:
    """Plot what was logged under one name against the step, a line for each row.

    Args:
        comparison: What to plot.
        logs: What the runs logged.
        key: The name under which it was logged.
        name: What it is called.
        scale: What it is multiplied by.

    Returns:
        The chart, or ``None`` where nothing was logged under that name.
    """
    bands: list[tuple[int, Row, Band]] = []
    for i, row in list(enumerate(comparison.rows))[:MOST_SERIES]:
        found = band(log.get(key, ()) for log in logs.get(i, ()))
        if found is not None:
            bands.append((i, row, _scaled(found, scale)))
    if not bands:
        return None
    ends = [point for *_, b in bands for curve in (b.low, b.high) for point in curve]
    title = f"{name.removesuffix(' (%)')} by step"
    plot = Plot(
        linear_axis([x for x, _ in ends], "step", margin=0.02),
        linear_axis([y for _, y in ends], name),
        title,
        "; ".join(f"{row.label} ends at {b.mean[-1][1]:.3g}" for _, row, b in bands),
    )
    for i, _, b in bands:
        if len(b.mean) > 1:
            plot.area(b.low, b.high, i)
    for i, row, b in bands:
        plot.line(b.mean, i, name=row.label)
    several = any(sum(key in log for log in found) > 1 for found in logs.values())
    note = "Lines are means over a row's runs, areas reach from the lowest to the highest run."
    parts = [note] if several else []
    if left_out := _left_out(comparison, logs):
        parts.append(left_out)
    legend = tuple((series_class(i), row.label) for i, row, _ in bands)
    return Chart(title, plot.markup(), " ".join(parts), legend)


def _left_out(comparison: Comparison, logs: Logs) -> str:
    more = sum(i >= MOST_SERIES and bool(found) for i, found in logs.items())
    return f"The first {MOST_SERIES} rows; {more} more are left out." if more else ""


def _scaled(found: Band, scale: float) -> Band:
    low, mean, high = (
        tuple((x, scale * y) for x, y in thin(curve))
        for curve in (found.low, found.mean, found.high)
    )
    return Band(mean=mean, low=low, high=high)
