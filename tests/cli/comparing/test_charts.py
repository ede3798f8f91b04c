"""What is drawn stands where its numbers say, and can be read."""

import re
from xml.etree import ElementTree

import pytest

from lightning_peft.cli.comparing import figures
from lightning_peft.cli.comparing.charts import against, curves_of
from lightning_peft.cli.comparing.comparison import Comparison, Row, Spread

DOWN = 2.9
"""From the middle of a number of 8 points to the line that it stands on."""


def marks(plot):
    """Where the numbers of both axes stand: ``{value: x}`` and ``{value: y}``, from the words."""
    across, up, factor = {}, {}, 1.0
    for element in ElementTree.fromstring(plot).iter("text"):
        text = element.text.replace("\N{MINUS SIGN}", "-")
        found = re.fullmatch(r"(-?[\d.]+(?:e-?\d+)?)(?: ([kM]))?", text)
        if found is None or "font-weight: 700" in element.get("style"):
            continue
        anchor = re.search(r"text-anchor: (\w+)", element.get("style"))
        value = float(found[1]) * {"k": 1e3, "M": 1e6, None: 1.0}[found[2]]
        if anchor is None or anchor[1] == "start":
            factor = value  # above the axis, of all its numbers
        elif anchor[1] == "end":
            up[value] = float(element.get("y"))
        else:
            across[value] = float(element.get("x"))
    return across, {value * factor: y for value, y in up.items()}


def between(places, value):
    """Where a value is on an axis, from the first and the last of its marks."""
    (low, start), (high, end) = min(places.items()), max(places.items())
    return start + (end - start) * (value - low) / (high - low)


def test_points_are_where_their_values_are():
    costs, parts = (1e2, 1e4, 1e6), (0.1, 0.5, 0.8)
    rows = [
        Row("m", Spread(part, 0.0, 1), trained=Spread(cost, 0.0, 1))
        for cost, part in zip(costs, parts, strict=True)
    ]
    chart = against(Comparison("test/accuracy", tuple(rows)), "trained", "trained parameters")
    across, up = marks(chart.svg)
    assert set(costs) <= across.keys()
    dots = ElementTree.fromstring(chart.svg).iterfind(".//title/..//use")
    for cost, part, dot in zip(costs, parts, dots, strict=True):
        assert float(dot.get("x")) == pytest.approx(across[cost], abs=0.2)
        assert float(dot.get("y")) == pytest.approx(between(up, 100 * part) - DOWN, abs=0.4)
    titles = [title.text for title in ElementTree.fromstring(chart.svg).iter("title")]
    assert titles.count("1. m: 10.0 %, 100 trained parameters") == 2, "on the dot and its number"
    assert len(titles) == 6


@pytest.mark.parametrize("values", [[3.0], [0.0], [0.951, 0.952], [-5.0, 1e6], [1e-9, 3e-9]])
def test_ticks_are_round_and_tell_where_a_curve_is(values):
    curve = tuple(enumerate(values, 1))
    comparison = Comparison("test/accuracy", (Row("m", Spread(0.5, 0.0, 1)),))
    chart = curves_of(comparison, {0: [{"train/loss": curve}]}, "train/loss", "training loss")
    across, up = marks(chart.svg)
    assert 2 <= len(across) <= 12
    assert len(values) == 1 or all(step.is_integer() for step in across)
    assert 2 <= len(up) <= 12
    steps = {round(b - a, 15) for a, b in zip(sorted(up), sorted(up)[1:], strict=False)}
    step = min(steps)
    assert max(steps) == pytest.approx(step), "as far apart on the axis as in words"
    assert f"{step:.1e}"[:3] in ("1.0", "2.0", "2.5", "5.0"), "and round"
    group = next(ElementTree.fromstring(chart.svg).iterfind(".//title/.."))
    path = group.find("path").get("d")
    points = [(float(x), float(y)) for x, y in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path)]
    assert len(points) == len(values)
    for (x, y), (at, value) in zip(points, curve, strict=True):
        assert x == pytest.approx(between(across, at), abs=0.1)
        assert y == pytest.approx(between(up, value) - DOWN, abs=0.4)


@pytest.mark.parametrize("top", [0.0012, 3.7e-7, 1e6, 100.0])
def test_the_label_of_the_y_axis_is_clear_of_its_numbers(top):
    comparison = Comparison("test/accuracy", (Row("m", Spread(0.5, 0.0, 1)),))
    chart = curves_of(comparison, {0: [{"lr": ((0, -top), (9, top))}]}, "lr", "learning rate")
    with figures.style():
        chart.figure.draw_without_rendering()
        axis = chart.figure.axes[0].yaxis
        ends = [text.get_window_extent().x0 for text in axis.get_majorticklabels()]
        assert len(ends) > 3
        assert axis.label.get_window_extent().x1 < min(ends)
        assert axis.label.get_window_extent().x0 >= 0


def test_a_plot_keeps_every_character_that_xml_can_hold():
    name = "a\u00a0b\u3000c\U0001f600d\x00e\ud800f\uffffg<&>'\"$"
    kept = "a\u00a0b\u3000c\U0001f600d\ufffde\ufffdf\ufffdg<&>'\"$"
    row = Row(name, Spread(0.5, 0.0, 1), trained=Spread(10.0, 0.0, 1))
    level = Row(f"level {name}", Spread(0.4, 0.0, 1), baseline=True)
    chart = against(Comparison("test/accuracy", (row, level)), "trained", name)
    texts = {element.text for element in ElementTree.fromstring(chart.svg).iter("text")}
    assert texts >= {kept, f"level {kept}"}
