import csv

import numpy as np
import pytest
import torch
from sklearn import metrics

from lightning_peft.errors import DataError
from lightning_peft.evaluation.results import ClassScores, Evaluation, per_class_table
from lightning_peft.system.randomness import generator


def labels(classes, n=200, absent=()):
    random = generator("labels", classes)
    true = torch.randint(0, classes, (n,), generator=random)
    called = torch.where(
        torch.rand(n, generator=random) < 0.6,
        true,
        torch.randint(0, classes, (n,), generator=random),
    )
    for label in absent:
        true[true == label] = 0
        called[called == label] = 0
    return true.numpy(), called.numpy()


@pytest.mark.parametrize("absent", [(), (3,)], ids=["all", "one-absent"])
def test_the_table_is_scikit_learns(absent):
    true, called = labels(5, absent=absent)
    confusion = torch.tensor(metrics.confusion_matrix(true, called, labels=range(5)))
    expected = metrics.precision_recall_fscore_support(
        true, called, labels=range(5), zero_division=0
    )
    table = per_class_table(confusion)
    got = np.array([[row.precision, row.recall, row.f1, row.support] for row in table]).T
    np.testing.assert_allclose(got, np.array(expected), rtol=1e-12)
    assert [row.name for row in table] == list("01234")


def test_a_matrix_that_is_not_square():
    with pytest.raises(DataError, match=r"square confusion matrix, got shape \(2, 3\)"):
        per_class_table(torch.zeros(2, 3))


def test_names_of_another_number():
    with pytest.raises(DataError, match=r"Expected 2 class names, got 1: \['a'\]"):
        per_class_table(torch.eye(2), ["a"])


def test_csv(tmp_path):
    confusion = torch.tensor([[3, 1], [0, 4]])
    found = Evaluation({}, per_class_table(confusion, ["a, b", "ü"]), confusion)
    table, matrix = found.write_csv(tmp_path / "new")
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    read = tuple(
        ClassScores(
            r["name"], *(float(r[k]) for k in ("precision", "recall", "f1")), int(r["support"])
        )
        for r in rows
    )
    assert read == found.classes
    with matrix.open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [
            ["true \\ predicted", "a, b", "ü"],
            ["a, b", "3", "1"],
            ["ü", "0", "4"],
        ]
