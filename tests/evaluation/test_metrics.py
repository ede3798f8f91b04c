"""The metrics of each task against scikit-learn and scipy."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics
from torchmetrics.functional.classification import binary_calibration_error

from lightning_peft.errors import DataError
from lightning_peft.evaluation.calibration import expected_error, label_errors, reliability
from lightning_peft.evaluation.metric_names import TASKS, is_share, lower_is_better, written
from lightning_peft.evaluation.metrics import begin_anew, metric_set, values_of
from lightning_peft.lightning.modules.tasks import imbalance
from lightning_peft.system.randomness import generator


def values(task, *arguments, **sizes):
    collection = metric_set(task, **sizes)
    for part in zip(*(a.split(7) for a in arguments), strict=True):
        collection.update(*part)
    return {name: float(value) for name, value in values_of(collection).items()}


def test_sums_are_not_those_of_a_cast_module():
    collection = metric_set("regression", num_outputs=1).to(torch.bfloat16)
    begin_anew(collection)
    found, truth = torch.linspace(0, 1, 2000), torch.zeros(2000)
    for part in zip(found.split(50), truth.split(50), strict=True):
        collection.update(*part)
    assert float(values_of(collection)["mae"]) == pytest.approx(0.5, rel=1e-5)


def test_binary():
    random = generator("binary")
    p = torch.rand(50, generator=random)
    y = (torch.rand(50, generator=random) < p).long()
    found, called = values("binary", p, y), (p > 0.5).long()
    assert found.pop("ece") < 0.5  # tests/evaluation/test_calibration.py
    assert found == pytest.approx(
        {
            "accuracy": metrics.accuracy_score(y, called),
            "balanced_accuracy": metrics.balanced_accuracy_score(y, called),
            "f1": metrics.f1_score(y, called),
            "auroc": metrics.roc_auc_score(y, p),
            "ap": metrics.average_precision_score(y, p),
        }
    )


def test_multilabel():
    random = generator("multilabel")
    p = torch.rand(50, 3, generator=random)
    y = (torch.rand(50, 3, generator=random) < p).long()
    called = (p > 0.5).long()
    found = values("multilabel", p, y, num_labels=3)
    columns = zip(p.T.contiguous(), y.T.contiguous(), strict=True)
    each = [float(binary_calibration_error(*column, n_bins=15)) for column in columns]
    assert found.pop("ece") == pytest.approx(np.mean(each), abs=1e-6)
    assert label_errors(p, y) == pytest.approx(each, abs=1e-6)
    assert found == pytest.approx(
        {
            "accuracy": metrics.accuracy_score(y, called),
            "map": metrics.average_precision_score(y, p, average="macro"),
            "f1": metrics.f1_score(y, called, average="macro"),
            "f1_micro": metrics.f1_score(y, called, average="micro"),
        }
    )


@pytest.mark.parametrize("outputs", [1, 3])
def test_regression(outputs):
    random = generator("regression")
    y = torch.randn(50, outputs, generator=random)
    x = y + torch.randn(50, outputs, generator=random)
    pairs = list(zip(x.T.numpy(), y.T.numpy(), strict=True))
    x, y = x.squeeze(-1), y.squeeze(-1)
    assert values("regression", x, y, num_outputs=outputs) == pytest.approx(
        {
            "mae": metrics.mean_absolute_error(y, x),
            "rmse": metrics.root_mean_squared_error(y, x),
            "r2": metrics.r2_score(y, x),
            "pearson": np.mean([stats.pearsonr(*pair).statistic for pair in pairs]),
            "spearman": np.mean([stats.spearmanr(*pair).statistic for pair in pairs]),
        },
        rel=1e-4,
    )


def test_a_class_without_images_is_left_out_of_the_area():
    random = generator("absent")
    p = torch.rand(30, 4, generator=random).softmax(-1)
    y = torch.arange(30) % 3  # none is of class 3
    expected = np.mean([metrics.roc_auc_score(y == k, p[:, k]) for k in range(3)])
    assert values("multiclass", p, y, num_classes=4)["auroc"] == pytest.approx(expected)


def test_what_images_do_not_tell_is_nan():
    p, none = torch.tensor([0.1, 0.7, 0.3]), torch.zeros(3).long()
    found = values("binary", p, none)
    assert np.isnan([found["auroc"], found["ap"]]).all()
    assert found["accuracy"] == pytest.approx(2 / 3)
    found = values("multilabel", torch.rand(4, 2), torch.tensor([[1, 0]] * 4), num_labels=2)
    assert found["map"] == 1.0, "of the label that some image has"
    nothing = torch.zeros(4, 2).long()
    assert np.isnan(values("multilabel", torch.rand(4, 2), nothing, num_labels=2)["map"])
    assert np.isnan(values("regression", torch.ones(1), torch.ones(1), num_outputs=1)["r2"])


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_classes_without_images_are_left_out_of_the_means():
    random = generator("absent")
    p = torch.rand(30, 4, generator=random).softmax(-1)
    y, called = torch.arange(30) % 3, p.argmax(-1)  # none is of class 3, some are called so
    found = values("multiclass", p, y, num_classes=4)
    assert 3 in called
    assert found["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(y, called))
    assert found["f1"] == pytest.approx(metrics.f1_score(y, called, average="macro"))
    p, none = torch.tensor([0.1, 0.3, 0.3]), torch.zeros(3).long()
    found = values("binary", p, none)
    assert (found["balanced_accuracy"], np.isnan(found["f1"])) == (1.0, True)
    p, y = torch.tensor([[0.9, 0.2], [0.1, 0.3]]), torch.tensor([[1, 0], [0, 0]])
    expected = metrics.f1_score(y, p > 0.5, average="macro", zero_division=np.nan)
    assert values("multilabel", p, y, num_labels=2)["f1"] == expected == 1.0


@pytest.mark.parametrize("unit", [1e-7, 1e-3, 1e6])
def test_the_unit_of_numbers_does_not_matter(unit):
    """The references are computed in a unit in which the numbers are about 1."""
    random = generator("units")
    y = torch.randn(50, generator=random)
    x = y + 0.3 * torch.randn(50, generator=random)
    found = values("regression", x * unit, y * unit, num_outputs=1)
    assert found["r2"] == pytest.approx(metrics.r2_score(y, x), rel=1e-4)
    assert found["rmse"] == pytest.approx(unit * metrics.root_mean_squared_error(y, x), rel=1e-4)
    assert found["pearson"] == pytest.approx(stats.pearsonr(x, y).statistic, rel=1e-4)


def test_numbers_that_do_not_vary_have_no_correlation_and_nothing_to_explain():
    found = values("regression", torch.randn(9), torch.full((9,), 0.1), num_outputs=1)
    assert np.isnan([found["r2"], found["pearson"], found["spearman"]]).all()


def test_areas_of_many_classes_are_left_out():
    assert "auroc" in metric_set("multiclass", num_classes=100)
    assert "auroc" not in metric_set("multiclass", num_classes=101)
    assert "auroc" not in metric_set("multiclass", num_classes=3, ranking=False)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"task": "multiklass"}, r"got 'multiklass'. Did you mean 'multiclass'"),
        ({"task": "multiclass"}, r"num_classes of 2 or more for multiclass, got None"),
        ({"task": "multilabel", "num_labels": 1}, r"num_labels of 2 or more .*, got 1"),
        ({"task": "regression", "num_outputs": 0}, r"num_outputs of 1 or more .*, got 0"),
    ],
)
def test_refusals(arguments, match):
    with pytest.raises(DataError, match=match):
        metric_set(**arguments)


def test_every_metric_has_its_direction_and_its_way_of_writing():
    sizes = {"num_classes": 3, "num_labels": 3, "num_outputs": 1}
    for task in TASKS:
        for name, metric in metric_set(task, **sizes).items():
            assert lower_is_better(f"test/{name}") == (metric.higher_is_better is False), name
            assert is_share(name) == (task != "regression" and name != "ece"), name
    assert written("test/f1", 0.5) == "50.0 %"
    assert written("test/rmse", 12345.678) == "12345.7"


def test_labels_that_err_to_both_sides_do_not_cancel_out():
    # one label too sure, one not sure enough: pooled, the two are right on average
    p = torch.full((40, 2), 0.5)
    y = torch.tensor([[1, 0]]).expand(40, 2)
    assert label_errors(p, y) == (0.5, 0.5)
    assert values("multilabel", p, y, num_labels=2)["ece"] == pytest.approx(0.5)
    assert expected_error(reliability(p.flatten(), y.flatten().float())) == 0.0
    assert "ece" not in metric_set("multilabel", num_labels=101)


def test_uneven_classes():
    assert imbalance([10, 29], "train") is None
    told = imbalance([10, 31, 30], "val", ["a", "b", "c"])
    assert "'b' has 3.1 times the images of 'a' (31 and 10)" in told
    assert "from a ratio of 3 on" in told
    assert "val/balanced_accuracy" in told
    assert "'1' has 5 and '0' none" in imbalance([0, 5], "val")
    assert imbalance([], "val") is None
    assert imbalance([0, 0], "val") is None
