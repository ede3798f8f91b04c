"""Summaries of many runs become one row for each thing that was compared."""

import csv
import json
import statistics

import pytest

from lightning_peft.cli import main
from lightning_peft.cli.compare import compare, duration, percent, size
from lightning_peft.cli.comparison import Spread, comparison_of, read_summaries
from lightning_peft.cli.summary import write_json


def run(directory, method, seed, accuracy, *, overrides=(), **more):
    number = len(list(directory.glob("*")))
    write_json(
        directory / f"{number}_{method}" / "summary.json",
        {
            "status": "completed",
            "method": {"name": method},
            "seed": seed,
            "overrides": [f"method={method}", f"seed={seed}", "data=digits", *overrides],
            "metrics": {"test/accuracy": accuracy, "val/accuracy": 0.5},
            "parameters": {"trained": 1000 * len(method), "total": 10**6},
            "bytes": {"checkpoint": 4000 * len(method)},
            "seconds": {"step": 0.01, "total": 12.0},
            "images": {"train": 100, "val": 50, "test": 797},
            **more,
        },
    )


@pytest.fixture
def sweep(tmp_path):
    for seed, (lora, full) in enumerate([(0.90, 0.80), (0.92, 0.84), (0.97, 0.85)]):
        run(tmp_path, "lora", seed, lora, baselines={"nearest_neighbour": 0.7 + seed / 10})
        run(tmp_path, "full", seed, full, baselines={"nearest_neighbour": 0.7 + seed / 10})
    return tmp_path


def test_rows_are_means_over_seeds_best_first_and_baselines_last(sweep):
    comparison = comparison_of(*read_summaries(sweep))
    assert [row.label for row in comparison.rows] == ["lora", "full", "1-NN on pixels"]
    lora, full, baseline = comparison.rows
    values = [0.90, 0.92, 0.97]
    assert lora.accuracy.mean == pytest.approx(statistics.mean(values))
    assert lora.accuracy.deviation == pytest.approx(statistics.stdev(values))
    assert lora.seeds == (0, 1, 2)
    assert full.trained.mean == 4000
    assert baseline.baseline
    assert baseline.accuracy.count == 3, "once for each seed, not once for each run"
    assert comparison.best.name == "4_lora"


def test_what_differs_beside_the_method_is_in_the_label(tmp_path):
    run(tmp_path, "lora", 0, 0.9, overrides=["method.rank=4", "trainer=cpu"])
    run(tmp_path, "lora", 1, 0.8, overrides=["method.rank=4", "trainer=cpu"])
    run(tmp_path, "lora", 0, 0.95, overrides=["method.rank=8", "trainer=cpu"])
    labels = [row.label for row in comparison_of(*read_summaries(tmp_path)).rows]
    assert labels == ["lora method.rank=8", "lora method.rank=4"]


def test_a_failed_run_and_a_broken_file_are_reported_and_do_no_harm(sweep, capsys):
    run(sweep, "ia3", 0, None, status="failed", error="the loss is not finite")
    (sweep / "broken").mkdir()
    (sweep / "broken" / "summary.json").write_text('{"status": "comp')
    assert main(["compare", str(sweep)]) == 0
    out = capsys.readouterr().out
    assert "ia3" in out
    assert "failed: ia3, seed 0: the loss is not finite" in out
    assert "not a summary, left out:" in out
    assert [row.label for row in comparison_of(*read_summaries(sweep)).rows][2] == "ia3"


def test_compare_prints_a_table_and_writes_the_files(sweep, capsys):
    comparison = compare(sweep)
    out = capsys.readouterr().out
    assert "93.0 ± 3.6 %" in out
    assert "mean ± standard deviation over 3 seeds" in out
    assert "100 labelled images trained, 50 others chose the checkpoint, 797 tested" in out
    with (sweep / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == [row.label for row in comparison.rows]
    assert float(rows[0]["accuracy"]) == pytest.approx(0.93)
    assert float(rows[0]["checkpoint_bytes"]) == 16000
    written = json.loads((sweep / "comparison.json").read_text())
    assert written["rows"][1]["accuracy"]["count"] == 3
    assert (sweep / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_compare_again_does_not_read_its_own_files(sweep, capsys):
    first = compare(sweep)
    assert compare(sweep) == first


def test_without_matplotlib_the_table_is_there_and_the_extra_is_named(sweep, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    compare(sweep)
    out = " ".join(capsys.readouterr().out.split())
    assert "pip install 'lightning-peft[viz]'" in out
    assert "93.0 ± 3.6 %" in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["compare", "nowhere"], "expected a directory of runs, got nowhere"),
        (["compare", "."], "there is no summary.json below"),
        (["compare"], "the following arguments are required: directory"),
    ],
    ids=["no directory", "no runs", "no argument"],
)
def test_compare_refuses(tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (12, "12 B"),
        (999, "999 B"),
        (1500, "1.5 kB"),
        (152_300, "152 kB"),
        (5.1e6, "5.1 MB"),
        (2e9, "2.0 GB"),
    ],
)
def test_size(count, text):
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0081, "8.1 ms"), (12.34, "12.3 s"), (200, "3 min 20 s")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_percent():
    assert percent(None) == "-"
    assert percent(Spread.of([0.934])) == "93.4 %"
    assert percent(Spread.of([0.9, 0.92, None])) == "91.0 ± 1.4 %"
    assert Spread.of([None]) is None
