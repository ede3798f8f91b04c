"""Backbones of a known order come out in that order."""

import dataclasses
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file

import lightning_peft as lp
from lightning_peft.errors import DataError, MissingExtraError
from lightning_peft.ranking import Candidate, find_candidates, rank_candidates
from lightning_peft.ranking import rank as ranking
from lightning_peft.ranking.candidates import build, count_parameters, most_likely_reason
from lightning_peft.ranking.features import extract, milliseconds_each
from lightning_peft.ranking.sources import BACKBONES_OF


@pytest.fixture(scope="module")
def digits():
    data = lp.DigitsDataModule(labels_per_class=5)
    return lambda candidate: data.plain_dataloader("train")


@pytest.fixture(scope="module")
def ranked(degraded, digits):
    names = ["glyph_vit:random", f"glyph_vit:{degraded}", "glyph_vit"]
    return rank_candidates(find_candidates(names), digits)


def test_pretrained_beats_degraded_beats_random_by_every_score(ranked, degraded):
    order = ["glyph_vit", f"glyph_vit:{degraded}", "glyph_vit:random"]
    assert [row.label for row in ranked.rows] == order
    for name in ranking.BY:
        values = [row.value(name) for row in ranked.rows]
        assert values == sorted(values, reverse=True), name
        assert len(set(values)) == 3
    assert not ranked.skipped
    assert (ranked.images, ranked.classes, ranked.folds) == (50, 10, 5)


def test_a_row_says_what_a_backbone_costs(ranked):
    model = timm.create_model("glyph_vit", num_classes=0)
    for row in ranked.rows:
        assert row.parameters == sum(p.numel() for p in model.parameters())
        assert row.width == 128
        assert row.milliseconds > 0
    assert sum(row.first for row in ranked.rows) == pytest.approx(1.0)
    assert ranked.rows[0].first > 0.9


def test_the_features_are_those_of_the_frozen_model_in_evaluation_mode(digits):
    model = build(Candidate("glyph_vit"))
    assert not any(p.requires_grad for p in model.parameters())
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = extract(model, digits(None), "cpu")
    whole = timm.create_model("glyph_vit", pretrained=True).eval()
    images = torch.cat([images for images, _ in digits(None)])
    with torch.no_grad():
        expected = whole.forward_head(whole.forward_features(images), pre_logits=True)
    torch.testing.assert_close(found.values, expected)
    for name, value in model.state_dict().items():  # BatchNorm's statistics among them
        assert torch.equal(value, before[name])
    with pytest.raises(DataError, match=r"shape \(B, D\) from.*got \(\d+, 1, 24, 24\)"):
        extract(torch.nn.Identity(), digits(None), "cpu")


def test_random_weights_are_the_same_every_time():
    first, second, other = (
        build(Candidate("glyph_vit", "random"), seed=seed).blocks[0].attn.qkv.weight
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_file_of_weights_gives_the_model_that_wrote_it(tmp_path, digits):
    torch.manual_seed(0)
    model = timm.create_model("glyph_vit", num_classes=3)
    save_file(model.state_dict(), tmp_path / "own.safetensors")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "own.pth")
    images = next(iter(digits(None)))[0]
    with torch.no_grad():
        features = model.eval().forward_features(images)
        expected = model.forward_head(features, pre_logits=True)
        for name in ("own.safetensors", "own.pth"):
            loaded = build(Candidate("glyph_vit", str(tmp_path / name)))
            assert torch.equal(loaded(images), expected)


def test_what_cannot_be_loaded_is_reported_and_the_rest_ranked(tmp_path, digits, monkeypatch):
    model = timm.create_model("glyph_vit", num_classes=0)
    state = dict(model.state_dict())
    state["norm.extra"] = state.pop("fc_norm.bias")
    state["patch_embed.proj.0.weight"] = torch.zeros(32, 3, 3, 3)
    save_file(state, tmp_path / "other.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    create = timm.create_model

    def offline(name, pretrained=False, **kwargs):
        if name == "resnet18" and pretrained:
            raise ConnectionError("Name or service not known")
        return create(name, pretrained=pretrained, **kwargs)

    monkeypatch.setattr(timm, "create_model", offline)
    names = [f"glyph_vit:{tmp_path}/{name}.safetensors" for name in ("other", "torn")]
    found = rank_candidates(find_candidates([*names, "resnet18", "glyph_vit"]), digits)
    assert [row.label for row in found.rows] == ["glyph_vit"]
    reasons = [item.reason for item in found.skipped]
    assert "without fc_norm.bias; with norm.extra; with patch_embed.proj.0.weight" in reasons[0]
    assert "Expected a file of weights at" in reasons[1]
    assert "not on this machine and could not be downloaded" in reasons[2]
    assert most_likely_reason(RuntimeError("\nout of memory\n")) == "RuntimeError: out of memory"


def test_budgets_leave_out_before_weights_are_loaded(digits, monkeypatch):
    built = []
    watched = dataclasses.replace(
        BACKBONES_OF["images"],
        build=lambda c, weights=True, **kw: built.append((c, weights)) or build(c, **kw),
    )
    monkeypatch.setitem(BACKBONES_OF, "images", watched)
    one = find_candidates(["glyph_vit"])
    found = rank_candidates(one, digits, max_parameters=count_parameters("glyph_vit") - 1)
    assert found.skipped[0].reason == "it has 1,287,392 parameters"
    assert not found.rows
    assert not built
    found = rank_candidates(one, digits, max_milliseconds=1e-9)
    assert found.skipped[0].reason.endswith("ms an image")
    assert built == [(one[0], False)]
    found = rank_candidates(one, digits, max_parameters=1.3e6, max_milliseconds=1e9)
    assert len(found.rows) == 1


def test_candidates_are_names_files_and_patterns(tmp_path):
    names = ["glyph_vit", "glyph_v*", "resnet18:random", "resnet18.a?_in1k"]
    labels = [candidate.label for candidate in find_candidates(names)]
    assert labels[:2] == ["glyph_vit", "glyph_vit.synthetic"]
    assert "resnet18.a1_in1k" in labels
    assert len(set(labels)) == len(labels)
    # a pattern without a dot is one on the architecture: no distilled or larger namesakes
    found = find_candidates(["resnet18"[:-1] + "?"])
    assert {c.name.partition(".")[0] for c in found} <= {"resnet10", "resnet14", "resnet18"}
    assert find_candidates(["resnet1?:random"])[0].weights == "random"


def test_all_that_is_wrong_with_candidates_is_told_at_once(tmp_path):
    names = ["resnet81", "nothing*", f"glyph_vit:{tmp_path}/none.pth"]
    with pytest.raises(DataError) as caught:
        find_candidates(names)
    text = str(caught.value)
    assert "timm has no model 'resnet81'. Did you mean" in text
    assert "no pretrained model of timm matches 'nothing*'" in text
    assert "expected a file of weights at" in text
    with pytest.raises(DataError, match="expected one or more models, got none"):
        find_candidates([])


def test_without_scikit_learn_the_extra_is_named_before_anything_is_computed(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match=r"`sklearn` is needed.*lightning-peft\[data\]"):
        rank_candidates([Candidate("glyph_vit")], lambda candidate: pytest.fail("was read"))


def test_a_score_that_there_is_not_is_refused():
    with pytest.raises(DataError, match="There is no score 'logmee'. Did you mean 'logme'"):
        rank_candidates([], digits, by="logmee")


def test_backbones_have_to_see_the_same_images():
    images, labels = torch.rand(20, 1, 24, 24), torch.arange(20) % 2
    turns = iter([labels, labels.flip(0)])

    def batches(candidate):
        return [(images, next(turns))]

    candidates = find_candidates(["glyph_vit", "glyph_vit:random"])
    with pytest.raises(DataError, match="same images in the same order for every backbone"):
        rank_candidates(candidates, batches)


def test_chances_are_those_of_a_paired_bootstrap():
    right = torch.ones(40, dtype=torch.bool)
    wrong = right.clone()
    wrong[:8] = False
    assert ranking.chances([right, wrong])[0] > 0.99
    same = ranking.chances([wrong, wrong.clone()])
    assert same == [0.5, 0.5]  # always a tie
    # of two that each err on another image, one is ahead as often as the other
    first, second = right.clone(), right.clone()
    first[0], second[1] = False, False
    assert ranking.chances([first, second])[0] == pytest.approx(0.5, abs=0.05)


def test_the_time_an_image_takes_is_that_of_the_forward(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("lightning_peft.ranking.features.time.perf_counter", lambda: now[0])

    class Work(torch.nn.Module):
        def forward(self, images):
            now[0] += 0.002 * len(images)
            return images

    # of 50 images 32 are used
    assert milliseconds_each(Work(), torch.rand(50, 1, 2, 2), "cpu") == pytest.approx(2.0)
