import os

import numpy as np
import pytest

from lightning_peft.data.splits import few_labels, ranked_by_class
from lightning_peft.errors import DataError
from lightning_peft.lightning.datamodules.digits import DigitsDataModule

sklearn_datasets = pytest.importorskip("sklearn.datasets")


def indices(**options):
    module = DigitsDataModule(**options)
    module.setup()
    return module.indices


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"labels_per_class": 1, "val_per_class": 0, "seed": 7},
        {"labels_per_class": 5, "val_per_class": 20, "seed": 3},
    ],
    ids=["all", "one", "five"],
)
def test_digit_splits_are_stratified_and_disjoint(options):
    target = sklearn_datasets.load_digits().target
    splits = indices(**options)
    parts = [np.array(splits[name], dtype=int) for name in ("train", "val", "test")]
    together = np.concatenate(parts)
    assert len(np.unique(together)) == len(together)
    train, val, _ = (np.bincount(target[part], minlength=10) for part in parts)
    held_out = options.get("val_per_class", 10)
    assert (val == held_out).all()
    assert (train == options.get("labels_per_class", 100 - held_out)).all()


def test_no_setting_touches_the_test_set():
    first = indices()["test"]
    others = indices(
        labels_per_class=3, val_per_class=2, seed=11, batch_size=7, backbone=None, image_size=8
    )["test"]
    assert first == others
    assert len(first) == 797


def test_a_larger_sample_contains_the_smaller_ones():
    small, large = indices(labels_per_class=2), indices(labels_per_class=20)
    assert set(small["train"]) < set(large["train"])
    assert small["val"] == large["val"]


def test_the_seed_decides_the_sample():
    assert indices(labels_per_class=5, seed=0) == indices(labels_per_class=5, seed=0)
    assert (
        indices(labels_per_class=5, seed=0)["train"] != indices(labels_per_class=5, seed=1)["train"]
    )


def test_more_labels_than_there_are():
    module = DigitsDataModule(labels_per_class=95)
    with pytest.raises(
        DataError, match=r"95 or more.*'0' has 90 \(of 100, 10.*at most labels_per_class=90"
    ):
        module.setup()
    assert module.indices == {}


def test_every_short_class_is_named():
    with pytest.raises(DataError, match=r"'b' has 1 .*'c' has 0 .*Add images to these classes"):
        few_labels(
            {0: [0, 1, 2, 3], 1: [4, 5], 2: [6]},
            validation={0: 1, 1: 1, 2: 1},
            labels_per_class=2,
            class_names="abc",
        )


@pytest.mark.parametrize("count", [0, -1])
def test_labels_per_class_is_positive(count):
    with pytest.raises(DataError, match="labels_per_class of 1 or more"):
        DigitsDataModule(labels_per_class=count).setup()


def test_negative_validation():
    with pytest.raises(DataError, match="val_per_class of 0 or more, got -1"):
        DigitsDataModule(val_per_class=-1)


def test_a_new_image_moves_no_other():
    keys = [f"{i}.png" for i in range(20)]
    before = [keys[i] for i in ranked_by_class([0] * 20, keys, "s")[0]]
    longer = ["new.png", *keys]
    after = [longer[i] for i in ranked_by_class([0] * 21, longer, "s")[0]]
    after.remove("new.png")
    assert after == before


def test_a_name_of_a_file_that_is_no_text_has_its_place():
    keys = [os.fsdecode(name) for name in (b"a.png", b"caf\xe9.png", b"b.png")]
    ranked = ranked_by_class([0, 0, 0], keys, "x")
    assert sorted(ranked[0]) == [0, 1, 2]
    without = ranked_by_class([0, 0], [keys[0], keys[2]], "x")[0]
    assert [index for index in ranked[0] if index != 1] == [2 * index for index in without]
