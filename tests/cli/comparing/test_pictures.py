"""The picture of a sweep names every point, few or many."""

import logging
from types import SimpleNamespace

import pytest
import torch

from lightning_peft.cli.comparing import pictures
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


@pytest.mark.parametrize("count", [1, 8, 9, 24])
def test_every_point_is_named_once_and_readably(count, tmp_path, monkeypatch):
    drawn = []
    save = pictures.save_figure
    monkeypatch.setattr(
        pictures, "save_figure", lambda figure, path: drawn.append(figure) or save(figure, path)
    )
    path = pictures.accuracy_against_parameters(comparison(count), tmp_path / "picture.png")
    assert path.stat().st_size > 1000
    (axes,) = drawn[0].axes
    legend = axes.get_legend()
    beside = [] if legend is None else [text.get_text() for text in legend.get_texts()]
    inside = [text.get_text() for text in axes.texts]
    assert inside.count("pixels") == 1
    if count <= pictures.MOST_LABELS:
        assert [text for text in inside if text != "pixels"] == [
            f"method {i}" for i in range(count)
        ]
        assert not beside
    else:
        assert beside == [f"{i + 1}  method {i}" for i in range(count)]
        assert [text for text in inside if text != "pixels"] == [str(i + 1) for i in range(count)]


def test_without_a_point_there_is_no_picture(tmp_path):
    assert pictures.accuracy_against_parameters(comparison(0), tmp_path / "picture.png") is None
    assert not list(tmp_path.iterdir())


def by_rank(path):
    rows = [
        Row(f"{name} r={i}", Spread(0.9, 0.0, 1), name=name, apart=(f"r={i}",))
        for name in PRICES
        for i in (1, 2)
    ]
    found = Comparison("test/accuracy", tuple(rows))
    pictures.accuracy_by_number(found, swept_numbers(found)[0], path)


def by_parameters(path):
    rows = [Row(name, Spread(0.9, 0.0, 1), trained=Spread(10.0, 0.0, 1)) for name in PRICES]
    pictures.accuracy_against_parameters(Comparison("test/accuracy", tuple(rows)), path)


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


def test_the_powers_of_a_logarithmic_axis_are_drawn_as_such(tmp_path, monkeypatch):
    drawn = []
    save = pictures.save_figure
    monkeypatch.setattr(
        pictures, "save_figure", lambda figure, path: drawn.append(figure) or save(figure, path)
    )
    pictures.accuracy_against_parameters(comparison(4), tmp_path / "picture.png")
    ticks = drawn[0].axes[0].get_xticklabels()
    assert any("10^{" in tick.get_text() for tick in ticks)
    assert all(tick.get_parse_math() for tick in ticks)


def test_a_picture_that_cannot_be_drawn_fails_no_run(tmp_path, monkeypatch, caplog):
    written = []
    results = SimpleNamespace(write_csv=written.append, confusion=True, classes=())
    module = SimpleNamespace(test_results=lambda: results)
    monkeypatch.setattr(outcome, "some_predictions", lambda parts: (None, [], None))
    with caplog.at_level(logging.WARNING):
        outcome._write_test_set(SimpleNamespace(module=module, datamodule=object()), tmp_path)
    assert written == [tmp_path]
    assert "no picture of predictions: TypeError: " in caplog.text
