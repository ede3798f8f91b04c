"""The protocol of VTAB-1k from end to end."""

import json

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def vtab(tmp_path):
    numbers = np.random.default_rng(0)
    for task in ("kitti", "eurosat"):
        for split, size in {"train800": 8, "val200": 4, "train800val200": 12, "test": 8}.items():
            folder = tmp_path / "vtab" / task
            (folder / "images" / split).mkdir(parents=True)
            names = [f"images/{split}/{i:06d}.jpg" for i in range(size)]
            for i, name in enumerate(names):
                pixels = numbers.integers(60 * (i % 4), 60 * (i % 4) + 60, (24, 24), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / name)
            lines = [f"{name} {i % 4}\n" for i, name in enumerate(names)]
            (folder / f"{split}.txt").write_text("".join(lines))
    return tmp_path / "vtab"


def words(vtab):
    return (
        "data=vtab", f"data.root={vtab}", "data.mean=null", "data.std=null", "data.num_workers=0",
        "data.batch_size=4", "callbacks=no_validation", "trainer.max_steps=4",
    )  # fmt: skip


def summary(path):
    return json.loads((path / "summary.json").read_text())


def test_choose_then_train_once_more_and_test(command, vtab, tmp_path):
    shared = (*words(vtab), "data.task=kitti", "method=linear_probe")
    status, _, err = command(*shared, "data.phase=choose", "test=false", "hydra.run.dir=choose")
    assert status == 0, err
    chosen = summary(tmp_path / "choose")
    assert chosen["images"] == {"train": 8, "val": 4, "test": 0}
    assert 0 <= chosen["metrics"]["val/accuracy"] <= 1
    assert chosen["objective"]["name"] == "val/accuracy"
    assert "test/accuracy" not in chosen["metrics"]
    status, _, err = command(*shared, "hydra.run.dir=final")
    assert status == 0, err
    final = summary(tmp_path / "final")
    assert final["images"] == {"train": 12, "val": 0, "test": 8}
    assert "test/accuracy" in final["metrics"]
    assert "val/accuracy" not in final["metrics"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["data.phase=choose"], "data: Expected phase='final' to test, got 'choose'"),
        (["callbacks=default"], "callbacks: ModelCheckpoint monitors val/accuracy, but this data"),
        (["data.task=kiti"], "data.task: expected one of 19 words, got 'kiti'. Did you mean 'kitt"),
        (["data.phase=chose"], "data.phase: expected 'choose' or 'final', got 'chose'. Did you"),
        (["data.task=dmlab"], "data: Expected the folder"),
    ],
    ids=["test while choosing", "choose by the test", "task", "phase", "missing"],
)
def test_peeking_and_mistyping_are_refused_before_training(train, vtab, more, message):
    status, _, err = train(*words(vtab), "data.task=kitti", *more)
    assert status == 2
    assert err.startswith(f"lightning-peft: {message}"), err
