"""Reliability bins against scikit-learn, the temperature against scipy."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss
from torchmetrics.functional.classification import binary_calibration_error

from lightning_peft.errors import DataError
from lightning_peft.evaluation.calibration import (
    confidences,
    expected_error,
    fit_temperature,
    reliability,
)
from lightning_peft.randomness import generator


def logits(n=400, classes=5, sharpness=3.0):
    random = generator("calibration")
    scores = torch.randn(n, classes, generator=random)
    labels = torch.distributions.Categorical(logits=scores).probs.cumsum(1)
    labels = (labels < torch.rand(n, 1, generator=random)).sum(1)
    return sharpness * scores, labels


def test_bins_are_scikit_learns():
    random = generator("bins")
    confidence = torch.rand(500, generator=random)
    right = (torch.rand(500, generator=random) < confidence**2).float()
    bins = reliability(confidence, right, bins=10)
    truth, mean = calibration_curve(right.numpy(), confidence.numpy(), n_bins=10)
    np.testing.assert_allclose([b.accuracy for b in bins], truth, atol=1e-6)
    np.testing.assert_allclose([b.confidence for b in bins], mean, atol=1e-6)
    assert sum(b.count for b in bins) == 500
    assert all(b.low <= b.confidence <= b.high for b in bins)
    expected = binary_calibration_error(confidence, right.int(), n_bins=10)
    assert expected_error(bins) == pytest.approx(float(expected), abs=1e-6)


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


def test_refusals():
    with pytest.raises(DataError, match="validation images to fit a temperature on, got none"):
        fit_temperature(torch.empty(0, 3), torch.empty(0).long())
    with pytest.raises(DataError, match="task with classes to calibrate, got regression"):
        fit_temperature(torch.ones(2, 1), torch.ones(2), "regression")
