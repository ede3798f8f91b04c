"""Reliability bins against scikit-learn, the temperature against scipy."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from lightning_peft.errors import DataError
from lightning_peft.evaluation.calibration import (
    calibration_error,
    confidences,
    expected_error,
    fit_temperature,
    label_errors,
    reliability,
)
from lightning_peft.evaluation.metrics import metric_set, values_of
from lightning_peft.evaluation.results import Evaluation
from lightning_peft.evaluation.weighted import statistics_of
from lightning_peft.system.randomness import generator


def logits(n=400, classes=5, sharpness=3.0):
    random = generator("calibration")
    scores = torch.randn(n, classes, generator=random)
    labels = torch.distributions.Categorical(logits=scores).probs.cumsum(1)
    labels = (labels < torch.rand(n, 1, generator=random)).sum(1)
    return sharpness * scores, labels


@pytest.mark.parametrize("on_edges", [False, True])
def test_bins_are_scikit_learns(on_edges):
    random = generator("bins")
    confidence = torch.rand(500, generator=random)
    if on_edges:  # 0 and 1 among them
        confidence = (confidence * 16).round() / 16
    right = (torch.rand(500, generator=random) < confidence**2).float()
    bins = reliability(confidence, right, bins=8)
    truth, mean = calibration_curve(right.numpy(), confidence.numpy(), n_bins=8)
    np.testing.assert_allclose([b.accuracy for b in bins], truth, atol=1e-6)
    np.testing.assert_allclose([b.confidence for b in bins], mean, atol=1e-6)
    assert sum(b.count for b in bins) == 500
    assert all(b.low <= b.confidence <= b.high for b in bins)


def test_the_error_is_that_of_the_bins_of_scikit_learn():
    random = generator("error")
    confidence = torch.rand(300, generator=random).clamp(max=0.95)
    confidence[:20] = 1.0
    right = (torch.rand(300, generator=random) < confidence**2).float()
    weights = torch.randint(4, (3, 300), generator=random)
    weights[0] = 1
    found = calibration_error(confidence, right, weights.double())
    assert found[0] == pytest.approx(float(calibration_error(confidence, right)))
    for row, counts in zip(found, weights, strict=True):
        p, y = (part.repeat_interleave(counts).double().numpy() for part in (confidence, right))
        truth, mean = calibration_curve(y, p, n_bins=15)
        count = np.histogram(p, np.linspace(0, 1, 16))[0]
        expected = np.sum(np.abs(truth - mean) * count[count > 0]) / len(p)
        assert float(row) == pytest.approx(expected, abs=1e-9)


def test_certain_predictions_have_one_error_wherever_it_is_said():
    # 5 that are certain, of which 4 are right, and 5 that are sure by 95 %: all in the last bin
    p = torch.tensor([1.0] * 5 + [0.95] * 5)
    y = torch.tensor([0] + [1] * 9)
    metrics = metric_set("binary")
    metrics.update(p, y)
    evaluation = Evaluation({}, task="binary", outputs=p.double().logit()[:, None], targets=y)
    found = [
        float(values_of(metrics)["ece"]),
        evaluation.calibration_error(),
        expected_error(reliability(p, y)),
        label_errors(p[:, None], y[:, None])[0],
        float(statistics_of("binary", p[:, None], y, 2)(torch.ones(1, 10).double())["ece"]),
    ]
    assert found == pytest.approx([0.075] * 5, abs=1e-6)


def test_certainty_is_in_the_last_bin_and_empty_bins_are_left_out():
    (low, high) = reliability(torch.tensor([0.0, 1.0, 1.0]), torch.tensor([0.0, 1.0, 0.0]), bins=4)
    assert (low.low, low.high, low.count) == (0.0, 0.25, 1)
    assert (high.low, high.high, high.count, high.accuracy) == (0.75, 1.0, 2, 0.5)


def test_the_temperature_is_scipys():
    scores, labels = logits()

    def loss(log_t):
        values = log_softmax(scores.numpy().astype(float) / np.exp(log_t), axis=1)
        return -values[np.arange(len(labels)), labels.numpy()].mean()

    best = minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-10})
    found = fit_temperature(scores, labels)
    assert found == pytest.approx(np.exp(best.x), rel=1e-4)
    assert 2 < found < 4.5, "logits were three times too sharp"


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_the_temperature_of_yes_and_no(task):
    random = generator("yes")
    scores = torch.randn(300, 1 if task == "binary" else 3, generator=random)
    labels = (torch.rand(scores.shape, generator=random) < scores.sigmoid()).long()
    labels = labels[:, 0] if task == "binary" else labels

    def loss(log_t):
        p = (2.5 * scores.double() / np.exp(log_t)).sigmoid().flatten().numpy()
        return log_loss(labels.flatten().numpy(), p)

    best = minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-10})
    assert fit_temperature(2.5 * scores, labels, task) == pytest.approx(np.exp(best.x), rel=1e-4)


def test_it_brings_down_the_error_of_other_images():
    scores, labels = logits(2000)
    temperature = fit_temperature(scores[:1000], labels[:1000])
    errors = []
    for t in (1.0, temperature):
        pair = confidences("multiclass", (scores[1000:] / t).softmax(-1), labels[1000:])
        errors.append(expected_error(reliability(*pair)))
    assert errors[1] < errors[0] / 2


def test_separable_scores_end_at_the_bound():
    assert fit_temperature(torch.eye(3), torch.arange(3)) == 0.02
    assert fit_temperature(torch.eye(3), torch.tensor([1, 2, 0])) == 50.0


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_are_refused(broken):
    logits, labels = torch.randn(6, 3), torch.arange(6) % 3
    logits[2] = broken
    logits[4, 1] = broken
    with pytest.raises(DataError, match=r"NaN or infinity for 2 of 6 .*: the training diverged"):
        fit_temperature(logits, labels)


def test_refusals():
    with pytest.raises(DataError, match="validation images to fit a temperature on, got none"):
        fit_temperature(torch.empty(0, 3), torch.empty(0).long())
    with pytest.raises(DataError, match="task with classes to calibrate, got regression"):
        fit_temperature(torch.ones(2, 1), torch.ones(2), "regression")
