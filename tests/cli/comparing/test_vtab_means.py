"""The means over the tasks of VTAB-1k, as its protocol groups them."""

import json

import pytest

from lightning_peft.cli.comparing.comparison import comparison_of
from lightning_peft.cli.comparing.publish import compare
from lightning_peft.cli.comparing.runs import read_runs
from lightning_peft.cli.comparing.vtab_means import vtab_json, vtab_means
from lightning_peft.data.vtab_tasks import TASKS


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
