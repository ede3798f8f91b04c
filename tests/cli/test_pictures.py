"""The picture of a sweep names every point, few or many."""

import pytest

from lightning_peft.cli.comparing import pictures
from lightning_peft.cli.comparing.comparison import Comparison, Row, Spread


def comparison(count):
    rows = [
        Row(f"method {i}", Spread(0.9 + i / 1000, 0.01, 5), trained=Spread(10.0**i, 0.0, 5))
        for i in range(count)
    ]
    return Comparison("test/accuracy", (*rows, Row("pixels", Spread(0.8, 0.0, 5), baseline=True)))


@pytest.mark.parametrize("count", [1, 8, 9, 24])
def test_every_point_is_named_once_and_readably(count, tmp_path, monkeypatch):
    drawn = []
    save = pictures._save
    monkeypatch.setattr(
        pictures, "_save", lambda figure, path: drawn.append(figure) or save(figure, path)
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
