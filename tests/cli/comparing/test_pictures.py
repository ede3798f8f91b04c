"""The picture of a sweep names every point, few or many."""

import logging
from types import SimpleNamespace

import matplotlib as mpl
import pytest
import torch
from PIL import Image

from lightning_peft.cli.comparing import figures
from lightning_peft.cli.comparing.charts import against, by_number
from lightning_peft.cli.comparing.comparison import Comparison, Row, Spread
from lightning_peft.cli.comparing.swept import swept_numbers
from lightning_peft.cli.jobs import outcome, previews
from lightning_peft.lightning.schedules import Multiplier

PRICES = ("$5", "$x_{$")


def comparison(count):
    rows = [
        Row(f"method {i}", Spread(0.9 + i / 1000, 0.01, 5), trained=Spread(10.0**i, 0.0, 5))
        for i in range(count)
    ]
    return Comparison("test/accuracy", (*rows, Row("pixels", Spread(0.8, 0.0, 5), baseline=True)))


def drawn(comparison, path):
    """The picture of a comparison: its axes after it was saved, and the words beside it."""
    chart = against(comparison, "trained", "trained parameters")
    figures.save_figure(chart.figure, path, chart.keys)
    (axes,) = chart.figure.axes
    beside = [text.get_text() for found in chart.figure.legends for text in found.get_texts()]
    assert len(beside) == len(chart.keys)
    return axes, beside


def words_of(figure):
    """What is written in a picture; a tick beside the axis is kept by matplotlib, not drawn."""
    (axes,) = figure.axes
    words = [*axes.texts, axes.xaxis.label, axes.yaxis.label]
    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        ticks = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
        words += [text for value, text in ticks if low <= value <= high]
    return words + [text for found in figure.legends for text in found.get_texts()]


@pytest.mark.parametrize("count", [1, 8, 9, 24])
def test_every_point_is_named_once_and_readably(count, tmp_path):
    axes, beside = drawn(comparison(count), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000
    inside = [text.get_text() for text in axes.texts]
    names, numbers = [f"method {i}" for i in range(count)], [str(i + 1) for i in range(count)]
    if count <= 9:
        assert not beside
        assert sorted(inside) == sorted(["pixels", *names, *numbers])
    else:
        assert beside == [f"{i + 1}. method {i}" for i in range(count)]
        assert sorted(inside) == sorted(["pixels", *numbers])


@pytest.mark.parametrize("length", [10, 200])
def test_no_word_is_cut_off_or_covered(length, tmp_path):
    rows = [
        Row(f"{i} ".ljust(length, "x"), Spread(0.9 + i / 999, 0.01, 5), trained=Spread(1e3, 0, 5))
        for i in range(24)
    ]
    levels = [Row(f"level {i}", Spread(0.9 + i / 999, 0, 5), baseline=True) for i in range(2)]
    axes, beside = drawn(
        Comparison(f"test/{'m' * length}", (*rows, *levels)), tmp_path / "picture.png"
    )
    assert len(beside) == 24
    figure = axes.figure
    words = words_of(figure)
    boxes = [text.get_window_extent() for text in words]
    with Image.open(tmp_path / "picture.png") as image:
        width, height = image.size
    assert (width, height) == tuple(figure.bbox.size.astype(int))
    assert all(-1 <= box.x0 < box.x1 <= width + 1 for box in boxes)
    assert all(-1 <= box.y0 < box.y1 <= height + 1 for box in boxes)
    assert axes.bbox.width > 5 * figure.dpi, "the words take nothing from the picture"
    apart = [box for box, text in zip(boxes, words, strict=True) if not text.get_text().isdecimal()]
    assert sum(box.count_overlaps(apart) for box in apart) == len(apart), "each covers itself"


def test_without_a_point_there_is_no_picture():
    assert against(comparison(0), "trained", "trained parameters") is None


def by_rank(path):
    rows = [
        Row(f"{name} r={i}", Spread(0.9, 0.0, 1), name=name, apart=(f"r={i}",))
        for name in PRICES
        for i in (1, 2)
    ]
    found = Comparison("test/accuracy", tuple(rows))
    chart = by_number(found, swept_numbers(found)[0])
    figures.save_figure(chart.figure, path, chart.keys)
    assert [text.get_text() for text in chart.figure.legends[0].get_texts()] == list(PRICES)


def by_parameters(path):
    rows = [Row(name, Spread(0.9, 0.0, 1), trained=Spread(10.0, 0.0, 1)) for name in PRICES]
    axes, _ = drawn(Comparison("test/accuracy", tuple(rows)), path)
    assert {text.get_text() for text in axes.texts} >= set(PRICES)
    assert not any(text.get_parse_math() for text in words_of(axes.figure))


def of_classes(path):
    previews.predictions(torch.rand(2, 1, 4, 4), [0, 1], torch.eye(2).flip(0), ["$5", "$10"], path)


def of_augmentation(path):
    images = torch.rand(2, 1, 8, 8)
    previews.samples(images, images.unsqueeze(1), PRICES, path, title="$_{$")


def of_rates(path):
    rates = dict.fromkeys(PRICES, 0.1)
    previews.learning_rate(Multiplier(9, 2, "cosine"), rates, path, title="$_{$")


@pytest.mark.parametrize(
    "draw",
    [by_rank, by_parameters, of_classes, of_augmentation, of_rates],
    ids=lambda d: d.__name__,
)
def test_a_dollar_is_a_dollar(draw, tmp_path):
    draw(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_many_lines_say_how_many_are_left_out():
    rows = [
        Row(f"m{m} r={r}", Spread(0.9, 0.0, 1), name=f"m{m}", apart=(f"r={r}",))
        for m in range(14)
        for r in (1, 2)
    ]
    found = Comparison("test/accuracy", tuple(rows))
    chart = by_number(found, swept_numbers(found)[0])
    assert len(chart.keys) == 12
    assert "the first 12 of 14 lines" in chart.svg


def test_the_marks_of_a_logarithmic_axis_are_whole_numbers(tmp_path):
    axes, _ = drawn(comparison(7), tmp_path / "picture.png")
    words = [text.get_text() for text in words_of(axes.figure)]
    marks = ["1", "10", "100", "1 k", "10 k", "100 k", "1 M"]
    assert [word for word in words[len(axes.texts) :] if word in marks] == marks


def test_no_name_covers_a_point_or_another_name():
    with figures.style():
        figure, axes = figures.new_figure()
        axes.plot([1, 2, 3], [1, 2, 1.5], "o")
        points = [(1, 1, "a name of some length"), (2, 2, "another"), (3, 1.5, "a third\ud800")]
        level = axes.annotate("a level", (3, 1.6), ha="right")
        assert figures.name_points(figure, axes, points, [level])
        boxes = [text.get_window_extent() for text in axes.texts]
        assert len(boxes) == 4
        assert sum(box.count_overlaps(boxes) for box in boxes) == 4, "each covers itself alone"
        dots = axes.transData.transform([(x, y) for x, y, _ in points])
        assert not any(box.contains(*dot) for box in boxes for dot in dots)
        for box in boxes:
            box_is_inside = [axes.bbox.contains(*corner) for corner in box.corners()]
            assert all(box_is_inside)
        assert not figures.name_points(figure, axes, points * 12, [level])
        assert len(axes.texts) == 4, "where one has no room, none is written"


def test_the_style_is_the_same_whatever_the_user_has_set(tmp_path):
    def both(name):
        drawn(comparison(3), tmp_path / name)
        chart = against(comparison(3), "trained", "trained parameters")
        return (tmp_path / name).read_bytes(), chart.svg

    plain = both("plain.png")
    with mpl.rc_context({"font.size": 30, "text.usetex": True, "axes.facecolor": "red"}):
        assert both("other.png") == plain
        assert mpl.rcParams["font.size"] == 30, "and the user's own is left alone"


def test_a_picture_that_cannot_be_drawn_fails_no_run(tmp_path, monkeypatch, caplog):
    written = []
    results = SimpleNamespace(write_csv=written.append, confusion=True, classes=())
    module = SimpleNamespace(test_results=lambda: results)
    monkeypatch.setattr(outcome, "some_predictions", lambda parts: (None, [], None))
    with caplog.at_level(logging.WARNING):
        outcome._write_test_set(SimpleNamespace(module=module, datamodule=object()), tmp_path)
    assert written == [tmp_path]
    assert "no picture of predictions: TypeError: " in caplog.text
