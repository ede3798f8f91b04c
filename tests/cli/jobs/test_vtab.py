"""The protocol of VTAB-1k from end to end, and the means over its tasks."""

import json

import numpy as np
import pytest
from PIL import Image

from lightning_peft.cli.comparing.comparison import comparison_of
from lightning_peft.cli.comparing.publish import compare
from lightning_peft.cli.comparing.runs import read_runs
from lightning_peft.cli.comparing.vtab_means import vtab_json, vtab_means
from lightning_peft.data.vtab_tasks import TASKS


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


def write_all(directory, run, tasks=TASKS, method="lora", accuracy=lambda i: i / 20, seeds=2):
    for i, task in enumerate(tasks):
        for seed in range(seeds):
            run(directory, method, seed, accuracy(i), overrides=[f"data.task={task}"])


def read(directory):
    return comparison_of(*read_runs([directory]))


def test_means_of_the_groups_and_of_all_tasks(tmp_path, run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    write_all(tmp_path, run)
    write_all(tmp_path, run, list(TASKS)[:7], "full", lambda i: 0.5)
    lora, full = vtab_means(read(tmp_path))
    assert (lora.label, full.label) == ("lora", "full")
    natural = sum(range(7)) / 7 / 20
    specialized = sum(range(7, 11)) / 4 / 20
    structured = sum(range(11, 19)) / 8 / 20
    assert lora.of("natural") == pytest.approx(natural)
    assert lora.of("structured") == pytest.approx(structured)
    assert lora.of_groups == pytest.approx((natural + specialized + structured) / 3)
    assert lora.of_tasks == pytest.approx(sum(range(19)) / 19 / 20)
    assert (full.of("natural"), full.of("specialized"), full.of_groups) == (0.5, None, None)
    compare(tmp_path)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["full", "50.0", "%", "-", "-", "-", "-", "7", "of", "19"] in lines
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert content["vtab"] == vtab_json((lora, full))
    assert content["vtab"][0]["by_task"]["svhn"] == 5 / 20


def test_tasks_are_no_rivals(tmp_path, run):
    write_all(tmp_path, run, ["kitti", "dmlab"], seeds=3)
    write_all(tmp_path, run, ["kitti", "dmlab"], "full", lambda i: 0.3 - i / 10, seeds=3)
    pairs = {(each.first, each.other) for each in read(tmp_path).contrasts}
    assert pairs == {
        ("full data.task=kitti", "lora data.task=kitti"),
        ("full data.task=dmlab", "lora data.task=dmlab"),
    }


def test_other_data_has_no_such_table(tmp_path, run):
    run(tmp_path, "lora", 0, 0.5, overrides=["data.root=a"])
    run(tmp_path, "lora", 0, 0.6, overrides=["data.root=b"])
    assert vtab_means(read(tmp_path)) == ()
    assert vtab_json(()) == []
