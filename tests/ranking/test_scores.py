"""The scores against independent references: dense algebra, integration, scikit-learn."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from lightning_peft.errors import DataError
from lightning_peft.ranking import (
    h_score,
    leep,
    linear_probe,
    logme,
    nearest_neighbours,
    nleep,
)
from lightning_peft.ranking.linear_probe import stratified_folds

SCORES = {
    "logme": logme,
    "h_score": h_score,
    "nleep": nleep,
    "neighbours": nearest_neighbours,
    "probe": lambda f, y: linear_probe(f, y).accuracy,
}


def task(n=60, width=4, classes=3, distance=1.0, seed=0):
    """Gaussian classes whose means are so far apart."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    means = torch.randn(classes, width, generator=random)
    noise = torch.randn(n, width, generator=random)
    return distance * means[labels] + noise, labels


@pytest.mark.parametrize("name", SCORES)
def test_a_score_grows_with_the_distance_of_the_classes(name):
    found = [SCORES[name](*task(distance=distance)) for distance in (0.0, 0.7, 3.0)]
    assert found == sorted(found)
    assert found[0] < found[2]


@pytest.mark.parametrize("name", SCORES)
def test_a_score_does_not_depend_on_the_names_or_the_order_of_the_images(name):
    features, labels = task(distance=1.5)
    if name in ("probe", "nleep"):  # folds and mixtures start from the order
        assert SCORES[name](features, labels) == SCORES[name](features, labels * 10 + 7)
        return
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    shuffled = SCORES[name](features[order], (labels * 10 + 7)[order])
    assert shuffled == pytest.approx(SCORES[name](features, labels), rel=1e-9)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.zeros(4), torch.zeros(4).long(), r"features of shape \(N, D\).*got \(4,\)"),
        (torch.zeros(4, 2), torch.arange(3), r"got \(4, 2\) and \(3,\)"),
        (torch.zeros(4, 2), torch.zeros(4), "whole numbers as labels, got torch.float32"),
        (torch.zeros(4, 2), torch.zeros(4).long(), "two or more classes among the labels, got 1"),
        (torch.full((4, 2), torch.nan), torch.arange(4) % 2, "NaN or infinity for 4 of 4 images"),
    ],
)
def test_what_no_score_can_be_taken_of_is_refused(name, features, labels, message):
    with pytest.raises(DataError, match=message):
        SCORES[name](features, labels)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("features", [torch.zeros(20, 3), torch.eye(20), torch.ones(20, 30)])
def test_degenerate_features_give_a_number(name, features):
    assert math.isfinite(SCORES[name](features, torch.arange(20) % 2))


def dense_evidence(features, target, alpha, beta):
    covariance = np.eye(len(target)) / beta + features @ features.T / alpha
    return stats.multivariate_normal.logpdf(target, np.zeros(len(target)), covariance)


@pytest.mark.parametrize(("n", "width"), [(12, 3), (8, 8), (6, 11)])
@pytest.mark.parametrize("distance", [0.0, 1.0])
def test_logme_is_the_maximum_of_the_dense_gaussian_evidence(n, width, distance):
    features, labels = task(n, width, 2, distance)
    target = np.eye(2)[labels.numpy()]
    best = 0.0
    for k in range(2):

        def loss(logs, y=target[:, k]):
            alpha, beta = np.exp(np.clip(logs, -12, (20, 12)))
            return -dense_evidence(features.numpy().astype(float), y, alpha, beta)

        starts = [(0, 2), (12, 2), (-2, 6)]
        options = {"xatol": 1e-6, "fatol": 1e-9}
        best -= min(
            optimize.minimize(loss, s, method="Nelder-Mead", options=options).fun for s in starts
        )
    found = logme(features, labels)
    if n > width:
        assert found == pytest.approx(best / 2 / n, abs=1e-6)
    else:  # the labels can be fitted exactly: the reference stops at its bounds, below
        assert found >= best / 2 / n - 1e-6


def test_the_evidence_is_the_integral_over_the_weight():
    """p(y | F) by its definition: integrated over the one weight, maximised over a grid."""
    features, labels = task(n=9, width=1, classes=2, distance=2.0)
    f = features[:, 0].double().numpy()

    def norm(x, mean, variance):
        return -((x - mean) ** 2) / 2 / variance - np.log(2 * np.pi * variance) / 2

    def evidence(y, alpha, beta):
        centre = beta * f @ y / (alpha + beta * f @ f)
        width = 12 / math.sqrt(alpha + beta * f @ f)
        w = np.linspace(centre - width, centre + width, 2001)
        logs = norm(y[:, None], f[:, None] * w, 1 / beta).sum(0) + norm(w, 0, 1 / alpha)
        value = integrate.simpson(np.exp(logs), x=w)
        return math.log(value)

    total = 0.0
    for k in range(2):
        y = (labels.numpy() == k).astype(float)
        loss = lambda logs, y=y: -evidence(y, *np.exp(np.clip(logs, -8, (20, 8))))  # noqa: E731
        total -= optimize.minimize(loss, (0.0, 1.0), method="Nelder-Mead").fun
    assert logme(features, labels) == pytest.approx(total / 2 / 9, abs=1e-4)


def test_h_score_is_the_trace_of_the_covariances():
    features, labels = task(n=90, width=5, distance=1.0)
    x, y = features.double().numpy(), labels.numpy()
    means = np.stack([x[y == label].mean(0) for label in y])
    covariance, between = np.cov(x.T, bias=True), np.cov(means.T, bias=True)
    expected = np.trace(np.linalg.inv(covariance) @ between)
    assert h_score(features, labels, shrinkage=False) == pytest.approx(expected, rel=1e-9)
    centred = x - x.mean(0)  # Ledoit and Wolf's estimate, image by image
    noise = np.mean([np.sum((np.outer(row, row) - covariance) ** 2) for row in centred]) / 90
    alpha = noise / np.sum((covariance - np.trace(covariance) / 5 * np.eye(5)) ** 2)
    shrunk = (1 - alpha) * covariance + alpha * np.trace(covariance) / 5 * np.eye(5)
    expected = np.trace(np.linalg.inv(shrunk) @ ((1 - alpha) * between))
    assert h_score(features, labels) == pytest.approx(expected, rel=1e-9)


def test_a_single_feature_is_not_shrunk_away():
    features, labels = task(n=40, width=1, distance=2.0)
    expected = h_score(features, labels, shrinkage=False)
    assert h_score(features, labels) == pytest.approx(expected) != 0.0


def test_with_more_features_than_images_only_the_shrunk_h_score_tells_features_apart():
    good, labels = task(n=30, width=80, distance=1.0)
    bad = task(n=30, width=80, distance=0.0, seed=1)[0]
    for features in (good, bad):
        assert h_score(features, labels, shrinkage=False) == pytest.approx(2.0)
    assert h_score(good, labels) > 2 * h_score(bad, labels)


def test_leep_is_its_definition():
    random = torch.Generator().manual_seed(0)
    theta = torch.rand(12, 4, dtype=torch.float64, generator=random).softmax(1)
    labels = torch.arange(12) % 3
    total = 0.0
    for i in range(12):
        likelihood = 0.0
        for z in range(4):
            joint = sum(float(theta[j, z]) for j in range(12) if labels[j] == labels[i])
            likelihood += joint / float(theta[:, z].sum()) * float(theta[i, z])
        total += math.log(likelihood)
    assert leep(theta, labels) == pytest.approx(total / 12, rel=1e-12)


def test_nleep_of_clusters_that_are_the_classes_is_0_and_of_one_cluster_the_entropy():
    features, labels = task(n=60, width=4, distance=60.0)
    assert nleep(features, labels) == pytest.approx(0.0, abs=1e-6)
    assert nleep(features, labels, clusters=1) == pytest.approx(-math.log(3))
    with pytest.raises(DataError, match="from 1 to 60 clusters for 60 images, got 61"):
        nleep(features, labels, clusters=61)


@pytest.mark.parametrize("k", [1, 3])
def test_neighbours_are_scikit_learns_leave_one_out(k):
    features, labels = task(n=80, width=6, classes=2, distance=0.6)
    model = KNeighborsClassifier(k, metric="cosine", algorithm="brute")
    expected = cross_val_score(model, features.numpy(), labels.numpy(), cv=LeaveOneOut()).mean()
    assert nearest_neighbours(features, labels, k) == pytest.approx(expected)


def test_among_equal_votes_the_closer_class_wins():
    angles = torch.tensor([0.0, 0.1, 0.3])
    features = torch.stack([angles.cos(), angles.sin()], 1)
    # the first has one neighbour of either class, and that of its own is the closer
    assert nearest_neighbours(features, torch.tensor([0, 0, 1]), k=2) == pytest.approx(2 / 3)
    with pytest.raises(DataError, match="k of 1 or more neighbours, got 0"):
        nearest_neighbours(features, torch.tensor([0, 0, 1]), k=0)


@pytest.mark.parametrize("width", [5, 70])
def test_the_probe_fits_as_ridge_does(width):
    """With folds known and scaled by hand, scikit-learn's Ridge classifies the same images."""
    features, labels = task(n=60, width=width, distance=0.5)
    probe = linear_probe(features, labels, folds=4, seed=3)
    part = stratified_folds(labels, 4, 3)
    x, y = features.double().numpy(), np.eye(3)[labels.numpy()]
    correct = np.zeros(60, bool)
    for fold in range(4):
        out = part.numpy() == fold
        mean, deviation = x[~out].mean(0), x[~out].std(0)
        inputs, unseen = (x[~out] - mean) / deviation, (x[out] - mean) / deviation
        largest = np.linalg.norm(inputs, 2) ** 2
        errors = {}
        for strength in np.logspace(-6, 1, 22):
            hat = inputs @ np.linalg.solve(
                inputs.T @ inputs + strength * largest * np.eye(width), inputs.T
            )
            residual = (y[~out] - y[~out].mean(0)) - hat @ y[~out]
            leverage = np.diag(hat) + 1 / len(hat)
            errors[strength] = np.mean((residual / (1 - leverage)[:, None]) ** 2)
        model = Ridge(min(errors, key=errors.get) * largest).fit(inputs, y[~out])
        correct[out] = model.predict(unseen).argmax(1) == labels.numpy()[out]
    assert probe.correct.tolist() == correct.tolist()
    assert probe.accuracy == pytest.approx(correct.mean())
    assert probe.deviation == pytest.approx(np.std(probe.folds, ddof=1))


def test_folds_share_every_class_evenly():
    labels = torch.tensor([0] * 11 + [1] * 7 + [5] * 4)
    part = stratified_folds(labels, 4, seed=2)
    for label in (0, 1, 5):
        counts = torch.bincount(part[labels == label], minlength=4)
        assert int(counts.max() - counts.min()) <= 1
    counts = torch.bincount(part, minlength=4)
    assert int(counts.max() - counts.min()) <= 1
    assert not torch.equal(part, stratified_folds(labels, 4, seed=3))


@pytest.mark.parametrize(
    ("labels", "folds", "message"),
    [
        ([0, 0, 1, 1], 1, "from 2 to 4 folds, got 1"),
        ([0, 0, 1, 1], 5, "from 2 to 4 folds, got 5"),
        ([0, 0, 1, 2], 2, "got one for 2 of 3 classes"),
    ],
)
def test_folds_that_cannot_be_made_are_refused(labels, folds, message):
    with pytest.raises(DataError, match=message):
        stratified_folds(torch.tensor(labels), folds)
