"""The tests between rows are scipy's, or counted out by hand; too few seeds get none."""

import math

import numpy as np
import pytest
from scipy import stats

from lightning_peft.cli.comparing import significance
from lightning_peft.cli.comparing.significance import Contrast, contrast, holm
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


def test_without_scipy_it_says_what_to_install(no_scipy):
    others = {seed + 10: value for seed, value in FULL.items()}
    for found in (contrast("lora", "full", LORA, FULL), contrast("lora", "full", LORA, others)):
        assert (found.test, found.p) == ("", None)
        assert told(found).endswith("scipy is not installed (pip install 'lightning-peft[data]')")


@pytest.mark.parametrize("count", [3, 4, 8])
def test_pairs_that_all_differ_by_the_same_get_the_exact_test(count, no_scipy):
    values = {seed: 0.9 + seed / 100 for seed in range(count)}
    found = contrast("a", "b", values, {seed: value - 0.1 for seed, value in values.items()})
    expected = stats.permutation_test(
        ([0.1] * count,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert (found.test, found.p, found.interval) == ("exact sign-flip test", expected.pvalue, None)
    assert f"the smallest that {count} pairs can give is {2 / 2**count:g}" in told(found)
    same = contrast("a", "b", values, {seed: value + 1e-9 for seed, value in values.items()})
    assert (same.test, same.p) == ("exact sign-flip test", 1.0)


def test_of_other_seeds_one_row_must_vary():
    constant = contrast("a", "b", dict.fromkeys(range(3), 0.9), {s + 5: 0.8 for s in range(3)})
    assert constant.p is None
    assert "varies" in constant.why_not


def test_what_is_rounding_depends_on_how_large_the_numbers_are():
    """An RMSE may be of 1e-7 or of 1e4; the last digits of float32 are no difference."""
    third = {seed: float(np.float32(0.9) + seed * np.spacing(np.float32(0.9))) for seed in range(3)}
    others = {seed + 5: value - 0.1 for seed, value in third.items()}
    assert "varies" in contrast("a", "b", third, others).why_not
    large = {seed: 12345.6 + seed * 0.001 for seed in range(3)}
    same = contrast("a", "b", large, {s: float(np.float32(v)) for s, v in large.items()})
    assert (same.test, same.p) == ("exact sign-flip test", 1.0)
    expected = stats.ttest_rel(list(LORA.values()), list(FULL.values())).pvalue
    for unit in (1e-7, 1e4):
        small, smaller = ({s: unit * v for s, v in row.items()} for row in (LORA, FULL))
        found = contrast("a", "b", small, smaller)
        assert found.test == "paired t-test"
        assert found.p == pytest.approx(expected)


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
