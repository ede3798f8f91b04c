"""The weighted metrics against torchmetrics on the resampled images, the interval against scipy."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sklearn

from lightning_peft.errors import DataError
from lightning_peft.evaluation.bootstrap import intervals, resamples
from lightning_peft.evaluation.metrics import metric_set, values_of
from lightning_peft.evaluation.weighted import statistics_of
from lightning_peft.system.randomness import generator

N = 60


def cases():
    random = generator("cases")
    scores = torch.randn(N, 4, generator=random)
    labels = torch.randint(4, (N,), generator=random)
    labels[scores.argmax(1) == 3] = 3
    probabilities = (2 * scores).softmax(-1)
    called = torch.stack([probabilities.argmax(-1), probabilities.amax(-1)], -1)
    # rounded, so that there are ties
    yes = (scores.sigmoid() * 20).round() / 20
    truth = (torch.rand(N, 4, generator=random) < yes).long()
    numbers = 1000 + 3 * torch.randn(N, 2, generator=random).double()
    found = numbers + torch.randn(N, 2, generator=random)
    return {
        "multiclass": (called, labels, (probabilities, labels)),
        "binary": (yes[:, :1], truth[:, 0], (yes[:, 0], truth[:, 0])),
        "multilabel": (yes, truth, (yes, truth)),
        "regression": (found, numbers, (found, numbers)),
    }


@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel", "regression"])
def test_weights_are_repeated_images(task):
    outputs, targets, arguments = cases()[task]
    statistics = statistics_of(task, outputs, targets, 4)
    (weights,) = resamples(N, 4, seed=3)
    assert weights.sum(1).tolist() == [N] * 4
    weights = torch.cat([torch.ones(1, N).double(), weights])
    found = statistics(weights)
    sizes = {"num_classes": 4, "num_labels": 4, "num_outputs": 2}
    for row, counts in enumerate(weights.long()):
        metrics = metric_set(task, **sizes, ranking=False)
        metrics.update(*(part.repeat_interleave(counts, 0) for part in arguments))
        expected = {k: float(v) for k, v in values_of(metrics).items() if k != "spearman"}
        got = {name: float(values[row]) for name, values in found.items()}
        assert got == pytest.approx(expected, abs=2e-5)


def perfect(task):
    """Outputs that are right for all of 200 images; one class has 3 images, and one none."""
    truth = torch.zeros(200, dtype=torch.long)
    truth[:3] = 1
    if task == "multiclass":
        return torch.stack([truth, torch.ones(200)], -1), truth
    if task == "binary":
        return truth[:, None].double(), truth
    labels = torch.stack([1 - truth, truth, 0 * truth], -1)
    return labels.double(), labels


@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel"])
def test_classes_that_were_not_drawn_are_left_to_the_other_classes(task):
    """5 % of the resamples have none of the three images; a right answer is right in all."""
    found = intervals(statistics_of(task, *perfect(task), 3), 200)
    shares = {"accuracy", "balanced_accuracy", "f1", "f1_micro", "auroc", "ap", "map"}
    assert {name: ends for name, ends in found.items() if name in shares} == {
        name: (1.0, 1.0) for name in found if name in shares
    }
    assert {"accuracy", "f1"} <= found.keys()


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_each_resample_is_judged_as_scikit_learn_judges_it():
    outputs, labels, _ = cases()["multiclass"]
    few = torch.arange(N) < 12
    outputs, labels = outputs[few], labels[few]
    weights = torch.cat(list(resamples(len(labels), 20, seed=1)))
    found = statistics_of("multiclass", outputs, labels, 4)(weights)
    absent = 0
    for row, counts in enumerate(weights.long()):
        truth, called = (part.repeat_interleave(counts) for part in (labels, outputs[:, 0].long()))
        absent += len(truth.unique()) < 4
        balanced = sklearn.balanced_accuracy_score(truth, called)
        assert found["balanced_accuracy"][row] == pytest.approx(balanced)
        assert found["f1"][row] == pytest.approx(sklearn.f1_score(truth, called, average="macro"))
    assert absent


def test_resamples_of_equal_numbers_have_nothing_to_explain():
    """Their variance is rounding, by which nothing may be divided."""
    truth = torch.tensor([[0.1], [0.3], [7.7]])
    weights = torch.tensor([[3.0, 0, 0], [0, 3, 0], [0, 0, 3], [1, 1, 1]]).double()
    found = statistics_of("regression", truth + 0.1, truth, 1)(weights)
    for name in ("r2", "pearson"):
        assert found[name].isnan().tolist() == [True, True, True, False]


def test_the_interval_is_scipys():
    right = (torch.rand(200, generator=generator("right")) < 0.8).double()
    found = intervals(lambda w: {"x": w @ right / 200}, 200, replicates=20_000, seed=1)["x"]
    ends = stats.bootstrap(
        (right.numpy(),), np.mean, n_resamples=20_000, method="percentile", rng=0
    ).confidence_interval
    assert found == pytest.approx((ends.low, ends.high), abs=0.004)
    assert found[0] < right.mean() < found[1]


@pytest.mark.slow
def test_the_interval_of_an_area_is_scipys():
    from sklearn.metrics import roc_auc_score

    yes, truth, _ = cases()["binary"]
    statistics = statistics_of("binary", yes, truth, 2)
    found = intervals(statistics, N, replicates=3000, level=0.9)["auroc"]
    expected = stats.bootstrap(
        (truth.numpy(), yes[:, 0].numpy()),
        roc_auc_score, n_resamples=1500, method="percentile", paired=True,
        vectorized=False, confidence_level=0.9, rng=0,
    ).confidence_interval  # fmt: skip
    assert found == pytest.approx((expected.low, expected.high), abs=0.02)


def test_the_seed_decides_and_pieces_do_not(monkeypatch):
    def draw(seed):
        return torch.cat(list(resamples(7, 10, seed)))

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    whole = draw(0)
    monkeypatch.setattr("lightning_peft.evaluation.bootstrap._ELEMENTS", 20)
    assert [len(piece) for piece in resamples(7, 10, 0)] == [2] * 5
    assert torch.equal(draw(0), whole)


def test_what_most_resamples_lack_has_no_interval():
    def statistics(weights):
        half = torch.arange(len(weights)) % 4
        nan = float("nan")
        return {
            "rare": torch.where(half == 0, 1.0, nan),
            "frequent": torch.where(half == 0, nan, 1.0),
        }

    assert intervals(statistics, 5, replicates=100) == {"frequent": (1.0, 1.0)}


def test_all_arguments_out_of_range_at_once():
    with pytest.raises(DataError, match=r"2 or more images, got 1; 2 or more resamples, got 0; a"):
        intervals(lambda w: {}, 1, replicates=0, level=1.0)
