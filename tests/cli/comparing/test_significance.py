"""The tests between rows are scipy's, or counted out by hand; too few seeds get none."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from lightning_peft.cli.comparing import significance
from lightning_peft.cli.comparing.significance import Contrast, contrast, holm, sign_flip_p
from lightning_peft.cli.comparing.wording import p_value, told

LORA = {0: 0.91, 1: 0.93, 2: 0.96, 3: 0.90, 4: 0.92}
FULL = {0: 0.89, 1: 0.92, 2: 0.93, 3: 0.90, 4: 0.88}


@pytest.fixture
def no_scipy(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "scipy", None)


def test_the_same_seeds_are_compared_in_pairs():
    found = contrast("lora", "full", LORA, {**FULL, 7: 0.1})  # a seed that only one has is left out
    a, b = np.array(list(LORA.values())), np.array(list(FULL.values()))
    difference = a - b
    t = difference.mean() / (difference.std(ddof=1) / math.sqrt(5))
    half = stats.t.ppf(0.975, 4) * difference.std(ddof=1) / math.sqrt(5)
    assert (found.test, found.count) == ("paired t-test", 5)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(t), 4))
    assert found.difference == pytest.approx(difference.mean())
    assert found.interval == pytest.approx((difference.mean() - half, difference.mean() + half))


def test_other_seeds_are_compared_as_two_samples():
    others = {10 + seed: value for seed, value in FULL.items()}
    found = contrast("lora", "full", LORA, others)
    a, b = list(LORA.values()), list(FULL.values())
    assert (found.test, found.count) == ("Welch's t-test", 5)
    assert found.p == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue)
    low, high = found.interval
    assert (low + high) / 2 == pytest.approx(found.difference)
    assert found.difference == pytest.approx(np.mean(a) - np.mean(b))


@pytest.mark.parametrize(
    ("values", "others", "count"),
    [
        ({0: 0.9, 1: 0.8}, {0: 0.7, 1: 0.6}, 2),
        ({0: 0.9}, FULL, 1),
        ({}, FULL, 0),
        ({7: 0.9, 8: 0.8}, FULL, 0),
    ],
    ids=["two pairs", "one seed", "none", "other seeds"],
)
def test_too_few_seeds_are_said_to_be_too_few(values, others, count):
    found = contrast("a", "b", values, others)
    assert (found.p, found.test, found.count) == (None, "", count)
    assert f"too few seeds: {count} in both, 3 are needed" in told(found)
    assert "p =" not in told(found)


def test_without_scipy_the_signs_are_counted_out(no_scipy):
    found = contrast("lora", "full", LORA, FULL)
    assert (found.test, found.count, found.interval) == ("exact sign-flip test", 5, None)
    assert "the smallest that 5 pairs can give is 0.0625" in told(found)
    unpaired = contrast("a", "b", LORA, {s + 10: v for s, v in FULL.items()})
    assert "scipy is not installed" in told(unpaired)
    many = dict(enumerate(np.linspace(0.5, 0.9, 20).tolist()))
    assert "more pairs than" in contrast("a", "b", many, dict.fromkeys(many, 0.5)).why_not


@pytest.mark.parametrize("count", [3, 5, 8])
def test_the_sign_flip_test_is_scipys_permutation_test(count):
    differences = np.random.default_rng(count).normal(0.5, 1, count)
    expected = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip_p(differences.tolist()) == pytest.approx(expected.pvalue)


def test_rounding_does_not_make_equal_sums_differ():
    differences = [0.1, 0.2, 0.3, 0.3]
    exact = [1, 2, 3, 3]
    signs = itertools.product((1, -1), repeat=4)
    hits = sum(abs(sum(s * d for s, d in zip(flip, exact, strict=True))) >= 9 for flip in signs)
    assert sign_flip_p(differences) == hits / 16


def test_pairs_that_all_differ_by_the_same_get_the_exact_test():
    found = contrast("a", "b", dict.fromkeys(range(4), 0.9), dict.fromkeys(range(4), 0.8))
    assert (found.test, found.p) == ("exact sign-flip test", 2 / 2**4)
    same = contrast("a", "b", LORA, LORA)
    assert (same.p, same.difference) == (1.0, 0.0)
    constant = contrast("a", "b", dict.fromkeys(range(3), 0.9), {s + 5: 0.8 for s in range(3)})
    assert constant.p is None
    assert "varies" in constant.why_not


def test_holm_is_the_smallest_level_at_which_the_step_down_procedure_rejects():
    p = [0.04, 0.001, 0.03, 0.5, 0.012]

    def rejects(level):
        rejected = set()
        for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
            if p[i] > level / (len(p) - rank):
                break
            rejected.add(i)
        return rejected

    contrasts = [Contrast("a", str(i), "t", 3, 0.1, None, value) for i, value in enumerate(p)]
    corrected = holm([*contrasts, Contrast("a", "untested")])
    assert corrected[-1].p_holm is None
    for i, found in enumerate(corrected[:-1]):
        assert found.p == p[i]
        assert i in rejects(found.p_holm + 1e-12)
        assert found.p_holm == 1.0 or i not in rejects(found.p_holm - 1e-12)


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.5, "p = 0.50"), (0.0313, "p = 0.031"), (0.00042, "p = 0.0004"), (1e-9, "p < 0.0001")],
)
def test_p_is_always_a_number(p, text):
    assert p_value(p) == text


def test_a_contrast_says_the_test_the_pairs_and_p():
    (found,) = holm([contrast("lora", "full", LORA, FULL)])
    p = stats.ttest_rel(list(LORA.values()), list(FULL.values())).pvalue
    assert f"paired t-test, 5 pairs: p = {p:.3f}" in told(found)
    assert "corrected" not in told(found), "one test needs no correction"
    assert significance.FEWEST == 3
