"""Synthetic glyphs: what is drawn, how it is labelled, how it is deformed."""

from __future__ import annotations

import sys

import pytest
import torch

from lightning_peft.errors import DataError, MissingExtraError
from tools.glyph_vit import deform, glyphs

pytest.importorskip("matplotlib")

FONTS = ("DejaVuSans", "cmr10")
CHARACTERS = "0O7AaΑБ"  # the sixth is a Greek capital alpha


@pytest.fixture(scope="module")
def bank() -> glyphs.GlyphBank:
    return glyphs.render_bank(FONTS, CHARACTERS)


def test_there_are_at_least_62_classes_of_which_digits_stay_apart() -> None:
    labels = glyphs.character_classes()
    assert len(set(labels.values())) >= 62
    assert len({labels[digit] for digit in "0123456789"}) == 10
    assert set(glyphs.ALPHANUMERIC) <= set(labels)


def test_held_out_fonts_are_not_trained_on() -> None:
    assert not set(glyphs.TRAIN_FONTS) & set(glyphs.HELD_OUT_FONTS)


def test_look_alikes_share_a_class_within_and_across_scripts(bank: glyphs.GlyphBank) -> None:
    assert bank.classes == ("0", "7", "A", "a", "Б")


def test_a_font_without_a_character_is_passed_over(bank: glyphs.GlyphBank) -> None:
    fonts = {font for font, label in zip(bank.fonts, bank.labels, strict=True) if label == 4}
    assert fonts == {"DejaVuSans"}


def test_selecting_fonts_keeps_the_class_numbers(bank: glyphs.GlyphBank) -> None:
    part = bank.select(["cmr10"])
    assert part.classes == bank.classes
    assert set(part.fonts) == {"cmr10"}
    assert torch.equal(part.labels, bank.labels[torch.tensor([f == "cmr10" for f in bank.fonts])])
    assert set(bank.select(FONTS, ["7"]).labels.tolist()) == {1}
    with pytest.raises(DataError, match=r"Expected fonts of this bank.*got \['Arial'\]"):
        bank.select(["Arial"])


def test_each_class_is_drawn_by_its_weight_however_many_glyphs_it_has(
    bank: glyphs.GlyphBank,
) -> None:
    chances = torch.zeros(len(bank.classes)).index_add_(0, bank.labels, bank.chances())
    expected = [glyphs.DIGIT_WEIGHT] * 2 + [glyphs.LATIN_WEIGHT] * 2 + [glyphs.OTHER_WEIGHT]
    torch.testing.assert_close(chances, torch.tensor(expected))


def test_distance_is_that_to_the_nearest_pixel_of_the_mask() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(3, 12, 12, generator=generator) < 0.1
    rows = torch.arange(12.0)
    everywhere = torch.cartesian_prod(rows, rows)
    for got, one in zip(glyphs._distance(mask), mask, strict=True):
        expected = torch.cdist(everywhere, one.nonzero().float()).amin(1).view(12, 12)
        torch.testing.assert_close(got, expected)


def test_a_skeleton_is_thin_connected_to_its_ends_and_inside_the_ink() -> None:
    ink = torch.zeros(1, 30, 30, dtype=torch.bool)
    ink[0, 5:10, 3:27] = True  # a bar, 5 by 24
    thin = glyphs._skeletonize(ink)
    assert not bool((thin & ~ink).any())
    assert int(thin.any(1).sum()) >= 18  # spans the bar ...
    assert int(thin.sum(1).max()) <= 2  # ... one or two pixels high


def test_a_bare_glyph_is_the_typeset_one(bank: glyphs.GlyphBank) -> None:
    rows = torch.tensor([bank.fonts[i] == "DejaVuSans" for i in range(len(bank.fonts))])
    fields = bank.fields[rows & (bank.labels == 1)][:1]  # an upright 7
    image = deform.synthesize(fields, strength=0.0)[0, 0]
    assert image[:3].mean() > 0.4  # the bar along the top
    assert image[-4:, -8:].mean() < 0.1  # nothing at the lower right


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_images_are_in_range_and_of_the_stated_shape(
    bank: glyphs.GlyphBank, strength: float
) -> None:
    images = deform.synthesize(bank.fields, strength, torch.Generator().manual_seed(0))
    assert images.shape == (len(bank.labels), 1, 24, 24)
    assert bool(((images >= 0) & (images <= 1)).all())
    assert bool((images.amax((1, 2, 3)) > 0.15).all())  # no glyph is lost


def test_the_seed_decides_the_images(bank: glyphs.GlyphBank) -> None:
    def draw(seed: int) -> torch.Tensor:
        return deform.synthesize(bank.fields, 1.0, torch.Generator().manual_seed(seed))

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_rendering_is_reproducible(bank: glyphs.GlyphBank) -> None:
    again = glyphs.render_bank(FONTS, CHARACTERS)
    assert torch.equal(again.fields, bank.fields)
    assert torch.equal(again.labels, bank.labels)


def test_unknown_fonts_and_characters_are_refused_together() -> None:
    with pytest.raises(DataError, match=r"fonts \['Arial'\] and unknown characters \['%'\]"):
        glyphs.render_bank(["DejaVuSans", "Arial"], "a%")


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"lightning-peft\[viz\]"):
        glyphs.render_bank(["DejaVuSans"], "a")
