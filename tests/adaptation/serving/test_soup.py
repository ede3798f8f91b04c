"""Soups against dense algebra, and what is refused."""

import pytest
import torch

import lightning_peft as lp
from lightning_peft.adaptation.serving.soup import (
    average_adapters,
    average_updates,
    greedy_soup,
    soup,
)
from tests.support.zoo import build


def member(seed, method=None, name="vit"):
    """A backbone whose adapter and head are at random values."""
    model = build(name)
    adaptation = lp.adapt(model, method or lp.LoRA(rank=2, alpha=6))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adaptation.trained_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return adaptation


def copied(adaptation):
    return {name: tensor.clone() for name, tensor in adaptation.state_dict().items()}


def merged(adaptation):
    """The backbone's weights with the adapter folded in, by the backbone's own names."""
    return {n: t.clone() for n, t in adaptation.merge_and_unload().state_dict().items()}


@pytest.mark.parametrize("weights", [None, [1, 2, 5]])
def test_a_soup_is_the_weighted_mean_of_every_entry(weights):
    states = [copied(member(seed)) for seed in range(3)]
    shares = [1 / 3] * 3 if weights is None else [w / 8 for w in weights]
    found = soup(states, weights)
    assert found.keys() == states[0].keys()
    for name, tensor in found.items():
        stacked = torch.stack([state[name] for state in states])
        expected = torch.einsum("k,k...->...", torch.tensor(shares), stacked)
        assert torch.allclose(tensor, expected, atol=1e-6), name


def test_the_mean_of_factors_has_cross_terms_and_the_mean_of_updates_has_none():
    """Both against dense weights; the latter is the best of rank r to the mean of both."""
    adaptations = [member(seed) for seed in range(2)]
    states = [copied(a) for a in adaptations]
    dense = [merged(a) for a in adaptations]
    base = build("vit").state_dict()
    name = "blocks.0.mlp.fc1"
    factors = [
        (s[f"{name}.lora_B.default.weight"], s[f"{name}.lora_A.default.weight"]) for s in states
    ]
    scale = 3.0
    mean_update = sum(d[f"{name}.weight"] - base[f"{name}.weight"] for d in dense) / 2
    assert torch.allclose(mean_update, scale * sum(b @ a for b, a in factors) / 2, atol=1e-5)

    of_parameters = member(9)
    of_parameters.load_state_dict(soup(states))
    got = merged(of_parameters)[f"{name}.weight"] - base[f"{name}.weight"]
    (b1, a1), (b2, a2) = factors
    expected = scale * (b1 @ a1 + b1 @ a2 + b2 @ a1 + b2 @ a2) / 4
    assert torch.allclose(got, expected, atol=1e-5)

    of_updates = member(9)
    state, lost = average_updates(of_updates, states)
    of_updates.load_state_dict(state)
    got = merged(of_updates)[f"{name}.weight"] - base[f"{name}.weight"]
    u, values, v = torch.linalg.svd(mean_update)
    assert torch.allclose(got, u[:, :2] * values[:2] @ v[:2], atol=1e-5)
    assert 0 < lost < 1
    assert torch.equal(state["head.weight"], soup(states)["head.weight"])


def test_updates_of_one_subspace_lose_nothing():
    """Members with one A: their mean has rank r, and both ways give it."""
    states = [copied(member(seed)) for seed in range(3)]
    for state in states[1:]:
        state.update({n: t for n, t in states[0].items() if "lora_A" in n})
    adaptation = member(9)
    state, lost = average_updates(adaptation, states)
    assert lost < 1e-6
    weights = []
    for found in (state, soup(states)):
        other = member(9)
        other.load_state_dict(found)
        weights.append(merged(other))
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], atol=1e-5), name


def test_updates_of_convolutions():
    adaptations = [member(seed, lp.LoRA(rank=2, targets="convs"), "resnet") for seed in range(2)]
    states = [copied(a) for a in adaptations]
    dense = [merged(a) for a in adaptations]
    target = member(9, lp.LoRA(rank=2, targets="convs"), "resnet")
    state, _ = average_updates(target, states)
    target.load_state_dict(state)
    got, base = merged(target), build("resnet").state_dict()
    name = "layer1.0.conv1.weight"
    mean = sum(d[name] - base[name] for d in dense) / 2
    u, values, v = torch.linalg.svd(mean.flatten(1), full_matrices=False)
    expected = (u[:, :2] * values[:2] @ v[:2]).reshape(mean.shape)
    assert torch.allclose(got[name] - base[name], expected, atol=1e-5)


KASA = lp.HF("lora", r=2, kasa_config={})  # LoRA with a diagonal between its factors


@pytest.mark.parametrize("method", [lp.DoRA(rank=2), lp.SSF(), KASA], ids=["dora", "ssf", "kasa"])
def test_updates_of_other_methods_are_refused(method):
    adaptation = member(0, method)
    with pytest.raises(lp.MethodError, match=r"expected LoRA on linear .* got '(dora|ssf|hf)'"):
        average_updates(adaptation, [copied(adaptation)])


@pytest.mark.parametrize("method", [lp.SSF(), lp.BitFit(), lp.Full()], ids=lambda m: m.name)
def test_adapter_directories_are_averaged(tmp_path, method):
    adaptations = [member(seed, method) for seed in range(2)]
    for number, adaptation in enumerate(adaptations):
        adaptation.save(tmp_path / str(number))
    found = average_adapters(build("vit"), [tmp_path / "0", tmp_path / "1"])
    one, two = (a.state_dict() for a in adaptations)
    for name, tensor in found.state_dict().items():
        assert torch.allclose(tensor, (one[name] + two[name]) / 2, atol=1e-6), name


def test_adapters_of_other_methods_and_other_backbones_are_refused(tmp_path):
    member(0).save(tmp_path / "a")
    member(1, lp.LoRA(rank=3)).save(tmp_path / "b")
    model = build("vit")
    with pytest.raises(lp.MethodError, match=r"of one method and its settings.*a with .*b with"):
        average_adapters(model, [tmp_path / "a", tmp_path / "b"])
    assert lp.find_adaptation(model) is None
    stranger = build("vit")
    with torch.no_grad():
        stranger.blocks[0].mlp.fc1.weight.add_(1)
    lp.adapt(stranger, lp.LoRA(rank=2, alpha=6)).save(tmp_path / "c")
    with pytest.raises(lp.BackboneMismatchError, match=r"blocks\.0"):
        average_adapters(build("vit"), [tmp_path / "a", tmp_path / "c"])
    with pytest.raises(lp.MethodError, match="expected of to be 'parameters' or 'updates'"):
        average_adapters(build("vit"), [tmp_path / "a"], of="factors")


def test_states_that_differ_are_listed():
    one = {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1)}
    two = {"a": torch.zeros(2), "b": torch.zeros(4), "d": torch.zeros(1)}
    listed = r"'c' is only in member 1.*'d' is only in member 2.*'b' is"
    with pytest.raises(lp.CheckpointError, match=listed):
        soup([one, two])


@pytest.mark.parametrize(
    ("states", "weights", "message"),
    [
        ([], None, "at least one member"),
        ([{}, {}], [1], r"expected 2 weights .* got \[1\]"),
        ([{}, {}], [1, -1], "weights from 0"),
        ([{}, {}], [0, 0], "not all 0"),
    ],
)
def test_impossible_weights_are_refused(states, weights, message):
    with pytest.raises(lp.MethodError, match=message):
        soup(states, weights)


def test_counts_are_those_of_the_first_member():
    states = [{"n": torch.tensor(3)}, {"n": torch.tensor(8)}]
    assert soup(states) == {"n": torch.tensor(3)}


def test_weights_whose_sum_overflows_and_complex_entries_are_averaged():
    states = [{"w": torch.tensor([1.0 + 4j])}, {"w": torch.tensor([3.0 - 2j])}]
    for weights in (None, [1e308, 1e308], [5e-324, 5e-324]):
        assert soup(states, weights) == {"w": torch.tensor([2.0 + 1j])}
    with pytest.raises(lp.MethodError, match="expected 2 weights from 0"):
        soup(states, [float("inf"), 1.0])


@pytest.mark.parametrize("number", [float("nan"), complex(0, float("inf"))])
def test_a_member_that_diverged_is_refused(number):
    sound, broken = torch.ones(2), torch.tensor([1, number])
    states = [{"w": sound.to(broken.dtype)}, {"w": broken}]
    with pytest.raises(lp.CheckpointError, match="'w' is not finite in member 2, which diverged"):
        soup(states)


def test_a_candidate_that_diverged_is_no_member_of_a_greedy_soup():
    nan, infinite = float("nan"), float("inf")
    scores = {(2, 4): nan, (2, 5): infinite, (2, 0): 0.8}
    found = greedy_soup(
        [{}] * 6, [0.5, nan, 0.9, infinite, 0.8, 0.7], lambda members: scores[tuple(members)]
    )
    assert found == ([2], 0.9)
    with pytest.raises(lp.MethodError, match=r"whose score is finite, got \[nan, nan\]: all of"):
        greedy_soup([{}] * 2, [nan, nan], lambda members: 1.0)


def test_a_greedy_soup_takes_who_does_not_harm():
    asked = []

    def score(members):
        asked.append(list(members))
        return {(1, 2): 0.9, (1, 2, 0): 0.8, (1, 2, 3): 0.9}[tuple(members)]

    members, best = greedy_soup([{}] * 4, [0.5, 0.9, 0.7, 0.4], score)
    assert asked == [[1, 2], [1, 2, 0], [1, 2, 3]]
    assert (members, best) == ([1, 2, 3], 0.9)
    with pytest.raises(lp.MethodError, match="a score for each, got 2 and 1 scores"):
        greedy_soup([{}, {}], [1.0], score)
