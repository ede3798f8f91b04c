"""What is read of a run, and that nothing in a file can do harm."""

import json
import socket

import pytest
from filelock import FileLock
from omegaconf import OmegaConf

from lightning_peft.cli.comparing.runs import HANDED_OUT, PREPARED, labelled, read_runs, run_of
from lightning_peft.cli.config.paths import conf_dir

SUMMARY = {"status": "completed", "method": {"name": "lora"}, "seed": 1}


def test_a_summary_is_read_whole(tmp_path):
    summary = {
        **SUMMARY,
        "overrides": ["method=lora", "seed=1", "+data.size=2", "lr=0.1", "output_dir=x"],
        "metrics": {"test/accuracy": 0.5},
        "efficiency": {"peak_process_rss_bytes": 7},
        "images": {"train": 100},
    }
    run = run_of(summary, tmp_path)
    assert (run.method, run.seed, run.completed) == ("lora", 1, True)
    assert run.overrides == ("data.size=2", "lr=0.1")
    assert run.about_data == ("data.size=2",)
    assert (run.peak_memory, run.on_gpu) == (7, False)
    assert run.images == {"train": 100}
    assert run_of({**summary, "efficiency": {"peak_cuda_bytes": 9}}, tmp_path).on_gpu


def test_a_setting_is_the_same_whether_a_sweep_or_a_single_run_had_it(tmp_path):
    def read(*words):
        return run_of({**SUMMARY, "overrides": list(words)}, tmp_path).overrides

    single = read("lr=1e-3", "test=false", "resume=NULL", "shots=10", "a='1e-3'", "b={x: 1}")
    swept = read("lr=0.001", "test=False", "resume=null", "shots=10", "a='1e-3'", r"b=\{x: 1\}")
    assert single == swept
    assert single == (
        "a='1e-3'",
        "b={x: 1}",
        "lr=0.001",
        "resume=null",
        "shots=10",
        "test=false",
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{" * 100_000,
        '{"status": "completed"}',
        '{"status": "done", "method": {}}',
        '{"status": ["completed"], "method": {}}',
        "\x00\x01",
    ],
    ids=["empty", "list", "null", "deep", "no method", "no such status", "type", "binary"],
)
def test_what_is_no_summary_is_unreadable(tmp_path, text):
    path = tmp_path / "a" / "summary.json"
    path.parent.mkdir()
    path.write_text(text)
    assert read_runs([tmp_path]) == ([], [path])


def test_what_is_of_the_wrong_type_is_not_there(tmp_path):
    content = json.loads(
        '{"status": "completed", "method": "x", "seed": "1", "overrides": "method=lora",'
        ' "metrics": {"test/accuracy": "0.9", "val/accuracy": NaN, "a": true, "b": 1e999,'
        f' "c": 1{"0" * 400}, "d": 0.5}}, "parameters": [1], "bytes": null, "images": "many"}}'
    )
    run = run_of(content, tmp_path)
    assert run.metrics == {"d": 0.5}
    assert (run.seed, run.overrides, run.parameters) == (None, (), {})
    assert (run.bytes, run.images) == ({}, {})


def test_a_run_whose_process_is_gone_was_interrupted(tmp_path):
    def status(process):
        return run_of({**SUMMARY, "status": "running", "process": process}, tmp_path).status

    here = {"host": socket.gethostname()}
    assert status(here) == "interrupted"
    for strange in ({"host": "elsewhere"}, {"host": None}, {}, None, 7):
        assert status(strange) == "unfinished"
    (tmp_path / ".in_use").write_text(json.dumps(here))
    assert status(here) == "interrupted"
    with FileLock(tmp_path / ".in_use.lock"):
        assert status(here) == status(None) == "running"
        (tmp_path / ".in_use").write_text('{"host": "elsewhere"}')
        assert status(here) == "unfinished"


def test_a_running_run_says_for_how_long(tmp_path, monkeypatch):
    process = {"host": socket.gethostname(), "started": 400.0}
    (tmp_path / ".in_use").write_text(json.dumps(process))
    with FileLock(tmp_path / ".in_use.lock"):
        run = run_of({**SUMMARY, "status": "running", "process": process}, tmp_path)
    monkeypatch.setattr("time.time", lambda: 1000.0)
    assert run.told() == "seed 1: running for 10 min"


def test_runs_are_read_in_the_order_of_their_numbers(tmp_path, run):
    for _ in range(11):
        run(tmp_path, "lora", 0, 0.5)
    runs, _ = read_runs([tmp_path])
    assert [r.directory.name.partition("_")[0] for r in runs] == [str(i) for i in range(11)]


CHOOSE = {
    *("_target_", "root", "labels", "label_columns", "text_column", "task", "phase", "seed"),
    *("labels_per_class", "train_on", "val_fraction", "val_per_class", "test_fraction"),
    *("pair_column", "max_target_length"),  # what is cut is not measured
    *("file_column", "encoding"),
}
"""Keys of the shipped data modules that say which images there are, and what their labels are."""


def test_every_key_of_data_chooses_the_images_or_leaves_them_alone():
    known = CHOOSE | HANDED_OUT | PREPARED
    for path in sorted((conf_dir() / "data").glob("*.yaml")):
        found = OmegaConf.load(path)
        assert set(found.get("data", found)) - {"defaults"} <= known, path.name
    assert not CHOOSE & (HANDED_OUT | PREPARED)


def test_rows_of_other_images_labels_or_splits_are_no_rivals():
    apart = [f"data.{key}=1" for key in sorted(CHOOSE)]
    apart += ["data=folder", "data.own.key=1", "shots=2"]
    same = [f"data.{key}=1" for key in sorted(HANDED_OUT | PREPARED)]
    same += ["data.augment.crop=1", "lr=0.1", "database=x", "augment=strong"]
    assert labelled([*apart, *same]) == tuple(apart)
