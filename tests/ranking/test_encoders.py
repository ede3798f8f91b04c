"""Encoders of texts of a known order come out in that order."""

import pytest
import torch

import lightning_peft as lp
from lightning_peft.errors import DataError
from lightning_peft.ranking import Candidate, find_encoders, rank_candidates
from lightning_peft.ranking.encoders import build_encoder, count_encoder_parameters
from lightning_peft.ranking.rank import BY
from tests.support.encoders import minilm, tiny_encoder
from tests.support.topics import HELD_OUT, SEEN, sentences

transformers = pytest.importorskip("transformers", reason="extra: text")


@pytest.fixture(scope="module")
def degraded(tmp_path_factory):
    """The pretrained MiniLM with noise in its weights."""
    directory = tmp_path_factory.mktemp("degraded")
    model = transformers.AutoModel.from_pretrained(minilm())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = parameter.std() if parameter.numel() > 1 else 0
            parameter.add_(0.45 * spread * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(directory)
    transformers.AutoTokenizer.from_pretrained(minilm()).save_pretrained(directory)
    return str(directory)


def batches_for(candidate):
    texts, labels = sentences({topic: SEEN[topic] + HELD_OUT[topic] for topic in SEEN})
    data = lp.TextDataModule(
        texts=texts, labels=labels, backbone=candidate.name, labels_per_class=20, val_fraction=0.0
    )
    return data.plain_dataloader("train")


@pytest.mark.slow
def test_pretrained_is_the_best_by_every_score_and_degraded_beats_random(degraded):
    order = [minilm(), degraded, f"{minilm()}:random"]
    ranked = rank_candidates(find_encoders(order[::-1]), batches_for, noun="texts")
    assert [row.label for row in ranked.rows] == order
    for name in BY:
        first, *others = [row.value(name) for row in ranked.rows]
        assert first > max(others), name
    assert ranked.rows[0].probe > 0.9
    assert (ranked.images, ranked.classes, ranked.noun) == (40, 2, "texts")
    model = transformers.AutoModel.from_pretrained(minilm())
    for row in ranked.rows:
        assert row.parameters == sum(p.numel() for p in model.parameters())
        assert row.width == 384


def test_features_are_the_mean_over_the_tokens_and_not_over_the_padding():
    candidate = Candidate(minilm())
    inputs, _ = next(iter(batches_for(candidate)))
    assert not inputs["attention_mask"].bool().all()
    found = build_encoder(candidate)(inputs)
    model = transformers.AutoModel.from_pretrained(minilm()).eval()
    for row, mask in enumerate(inputs["attention_mask"].bool()):
        alone = {name: tensor[row : row + 1, mask] for name, tensor in inputs.items()}
        with torch.no_grad():
            expected = model(**alone).last_hidden_state.mean(1)[0]
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-5)


def test_random_weights_are_the_same_every_time_and_everywhere(tmp_path):
    places = [tiny_encoder(tmp_path / place / "encoder") for place in ("here", "there")]
    first, second, other = (
        next(build_encoder(Candidate(place, "random"), seed=seed).parameters())
        for place, seed in zip([*places, places[0]], (0, 0, 1), strict=True)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert not first.requires_grad


def test_what_is_no_encoder_is_refused_all_at_once():
    with pytest.raises(DataError, match=r"(?s)'/nowhere/a', which is not.*'/nowhere/b', which is"):
        find_encoders(["/nowhere/a", "/nowhere/b:random"])
    with pytest.raises(DataError, match="a Hugging Face model of texts, got 'resnet18'"):
        find_encoders(["resnet18"])
    with pytest.raises(DataError, match="expected one or more models, got none"):
        find_encoders([])


def test_over_a_budget_nothing_is_loaded(tmp_path, monkeypatch):
    candidate = Candidate(tiny_encoder(tmp_path))
    count = count_encoder_parameters(candidate.name)
    monkeypatch.setattr("lightning_peft.ranking.encoders.load_encoder", None)
    ranked = rank_candidates([candidate], batches_for, noun="texts", max_parameters=count - 1)
    assert ranked.skipped[0].reason == f"it has {count:,} parameters"


def test_weights_of_another_architecture_are_a_reason_to_leave_one_out(tmp_path):
    directory = tiny_encoder(tmp_path)
    config = transformers.DistilBertConfig(
        vocab_size=20, dim=16, hidden_dim=32, n_layers=2, n_heads=2, max_position_embeddings=24
    )
    config.save_pretrained(directory)
    ranked = rank_candidates([Candidate(directory)], batches_for, noun="texts")
    assert not ranked.rows
    assert "it is of another architecture" in ranked.skipped[0].reason
