"""Summaries of many runs become one row for each thing that was compared."""

import csv
import io
import json
import re
import statistics
from pathlib import Path

import pytest
from rich.console import Console

from lightning_peft.cli import main
from lightning_peft.cli.comparing.comparison import Comparison, Row, Spread, comparison_of
from lightning_peft.cli.comparing.publish import compare
from lightning_peft.cli.comparing.runs import read_runs
from lightning_peft.cli.comparing.tables import as_csv, as_json, comparison_table, notes
from lightning_peft.cli.comparing.wording import duration, interval, score, size


def read(*directories):
    return comparison_of(*read_runs(directories))


@pytest.fixture
def sweep(tmp_path, run):
    for seed, (lora, full) in enumerate([(0.90, 0.80), (0.92, 0.84), (0.97, 0.85)]):
        run(tmp_path, "lora", seed, lora, baselines={"nearest_neighbour": 0.7 + seed / 10})
        run(tmp_path, "full", seed, full, baselines={"nearest_neighbour": 0.7 + seed / 10})
    return tmp_path


def test_rows_are_means_over_seeds_best_first_and_baselines_last(sweep):
    comparison = read(sweep)
    assert [row.label for row in comparison.rows] == ["lora", "full", "1-NN on pixels"]
    lora, full, baseline = comparison.rows
    values = [0.90, 0.92, 0.97]
    assert lora.accuracy.mean == pytest.approx(statistics.mean(values))
    assert lora.accuracy.deviation == pytest.approx(statistics.stdev(values))
    assert lora.seeds == (0, 1, 2)
    assert full.trained.mean == 4000
    assert baseline.baseline
    assert baseline.accuracy.count == 3, "once for each seed, not once for each run"
    assert comparison.best.directory.name == "4_lora"


def test_what_differs_beside_the_method_is_in_the_label(tmp_path, run):
    run(tmp_path, "lora", 0, 0.9, overrides=["method.rank=4", "trainer=cpu"])
    run(tmp_path, "lora", 1, 0.8, overrides=["method.rank=4", "trainer=cpu"])
    run(tmp_path, "lora", 0, 0.95, overrides=["method.rank=8", "trainer=cpu"])
    labels = [row.label for row in read(tmp_path).rows]
    assert labels == ["lora method.rank=8", "lora method.rank=4"]


def test_a_failed_run_and_a_broken_file_are_reported_and_do_no_harm(sweep, run, capsys):
    run(sweep, "ia3", 0, None, status="failed", error="the loss is not finite")
    (sweep / "broken").mkdir()
    (sweep / "broken" / "summary.json").write_text('{"status": "comp')
    assert main(["compare", str(sweep)]) == 0
    out = capsys.readouterr().out
    assert "ia3" in out
    assert "failed: ia3, seed 0: the loss is not finite" in out
    assert "not a summary, left out:" in out
    assert [row.label for row in read(sweep).rows][2] == "ia3"


def test_compare_prints_a_table_and_writes_the_files(sweep, capsys):
    comparison = compare(sweep)
    out = capsys.readouterr().out
    assert "93.0 ± 3.6 %" in out
    assert "mean ± standard deviation over 3 seeds" in out
    assert "100 labelled images trained, 50 others validated, 797 tested" in out
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


def test_runs_that_are_not_finished_are_shown_as_such(sweep, run, capsys):
    run(sweep, "ssf", 0, 0.99, status="running", process={"id": 1, "host": "elsewhere"})
    run(sweep, "lora", 3, 0.1, status="running", process={"id": 1, "host": "elsewhere"})
    comparison = compare(sweep)
    out = " ".join(capsys.readouterr().out.split())
    assert "not finished: ssf, seed 0: unfinished" in out
    assert "3 of 4" in out
    ssf = next(row for row in comparison.rows if row.label == "ssf")
    assert ssf.accuracy is None, "what it measured so far is no result"
    assert comparison.leader.accuracy.mean == pytest.approx(0.93)


def test_an_override_that_changes_no_result_sets_nothing_apart(tmp_path, run):
    run(tmp_path, "lora", 0, 0.9, overrides=["output_dir=a", "logger=none", "name=x"])
    run(tmp_path, "lora", 1, 0.8, overrides=["output_dir=b", "++baselines=[nearest_neighbour]"])
    (row,) = read(tmp_path).rows
    assert (row.label, row.seeds) == ("lora", (0, 1))


def test_a_seed_that_ran_twice_counts_once(tmp_path, run):
    for accuracy in (0.8, 0.9):
        run(tmp_path, "lora", 0, accuracy)
    run(tmp_path, "lora", 1, 0.95)
    (row,) = read(tmp_path).rows
    expected = Spread.of([0.85, 0.95])
    assert row.accuracy.mean == pytest.approx(expected.mean)
    assert row.accuracy.deviation == pytest.approx(expected.deviation)
    assert row.accuracy.count == 2
    assert row.seeds == (0, 0, 1)
    assert row.by_seed == pytest.approx({0: 0.85, 1: 0.95})


def test_runs_without_a_seed_are_each_counted(tmp_path, run):
    for accuracy in (0.8, 0.9):
        run(tmp_path, "lora", None, accuracy)
    (row,) = read(tmp_path).rows
    assert (row.accuracy.count, dict(row.by_seed)) == (2, {})


def test_what_was_not_tested_is_not_said_to_be(tmp_path, run):
    run(tmp_path, "lora", 0, None, metrics={"val/accuracy": 0.5}, monitor="val/accuracy")
    (note,) = notes(read(tmp_path))
    assert note == "100 labelled images trained, 50 others chose the checkpoint"


@pytest.mark.parametrize("monitor", [None, "train/loss", 3])
def test_what_chose_no_checkpoint_is_not_said_to_have(tmp_path, run, monitor):
    run(tmp_path, "lora", 0, 0.9, monitor="val/accuracy")
    run(tmp_path, "lora", 1, 0.9, monitor=monitor)
    told = notes(read(tmp_path))[-1]
    assert told == "100 labelled images trained, 50 others validated, 797 tested"


def test_runs_of_another_task_are_said_not_to_have_the_metric(tmp_path, run):
    run(tmp_path, "lora", 0, 0.9)
    assert not [note for note in notes(read(tmp_path)) if note.startswith("-")]
    run(tmp_path, "ssf", 0, None, metrics={"test/rmse": 2.0}, task="regression")
    told = "- for test accuracy: these runs did not measure it, because they have another task"
    assert [note for note in notes(read(tmp_path)) if note.startswith(told)]


def test_files_that_cannot_be_read_are_named_where_there_is_nothing_else(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text('{"status": "comp')
    assert main(["compare", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [f"{tmp_path / name / 'summary.json'}: expected the summary" in line
            for name, line in zip("ab", lines, strict=True)] == [True, True]  # fmt: skip


def test_the_help_names_the_files_and_is_no_error(capsys):
    assert main(["compare", "--help"]) == 0
    out = capsys.readouterr().out
    for word in ("report.html", "comparison.csv", "comparison.json", "--json", "--output"):
        assert word in out


def test_rows_of_other_seeds_are_said_to_be(sweep, run):
    assert notes(read(sweep))[0] == "mean ± standard deviation over 3 seeds"
    run(sweep, "full", 3, 0.99)
    assert "which are not the same" in notes(read(sweep))[0]


def test_directories_are_told_apart_where_the_same_ran_in_both(tmp_path, run):
    before, after = tmp_path / "before", tmp_path / "after"
    for seed in range(3):
        run(before, "lora", seed, 0.8)
        run(after, "lora", seed, 0.9)
    run(after, "bitfit", 0, 0.7)
    labels = [row.label for row in read(before, after).rows]
    assert labels == [f"lora ({after})", f"lora ({before})", "bitfit"]


def test_directories_with_other_seeds_of_the_same_are_one_row(tmp_path, run):
    run(tmp_path / "a", "lora", 0, 0.8)
    run(tmp_path / "b", "lora", 1, 0.9)
    (row,) = read(tmp_path / "a", tmp_path / "b", tmp_path).rows
    assert (row.label, row.seeds) == ("lora", (0, 1)), "each run once, however often it is found"


def test_several_directories_are_written_to_one_of_their_own(tmp_path, run, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "a", "lora", 0, 0.8)
    run(tmp_path / "b", "lora", 1, 0.9)
    assert main(["compare", "a", "b"]) == 0
    names = {"report.html", "comparison.csv", "comparison.json", "comparison.png"}
    assert {path.name for path in (tmp_path / "comparison").iterdir()} == names
    assert main(["compare", "a", "b", "-o", "here/and/there"]) == 0
    assert {path.name for path in (tmp_path / "here/and/there").iterdir()} == names
    assert not {path.name for path in (tmp_path / "a").iterdir()} & names


def test_json_and_csv_alone_are_what_the_files_hold(sweep, capsys):
    compare(sweep)
    capsys.readouterr()
    files = {name: (sweep / f"comparison.{name}").read_text() for name in ("json", "csv")}
    for path in sweep.glob("*.*"):
        path.unlink()
    for name, text in files.items():
        assert main(["compare", str(sweep), f"--{name}"]) == 0
        assert capsys.readouterr().out == text
    assert not list(sweep.glob("*.*")), "nothing is written"
    content = json.loads(files["json"])
    assert content["format"] == 3
    assert content["rows"][0]["accuracy_by_seed"] == {"0": 0.9, "1": 0.92, "2": 0.97}
    assert content["contrasts"][0]["count"] == 3
    assert content["front"] == ["lora"], "full has as many letters, so as many parameters"


def test_the_page_of_the_documentation_names_every_key_and_column(sweep):
    page = (Path(__file__).parents[3] / "docs" / "compare.md").read_text(encoding="utf-8")
    content = as_json(read(sweep))
    for key in {*content, *content["rows"][0], *content["contrasts"][0]}:
        assert re.search(rf"`(rows|contrasts)?(\[\])?\.?{key}`", page), key
    for column in as_csv(read(sweep)).partition("\n")[0].split(","):
        assert f"`{column}`" in page, column


def test_the_front_is_what_nothing_beats_at_its_cost():
    costs = [(10, 0.5), (20, 0.4), (30, 0.7), (30, 0.6), (40, 0.7), (50, 0.9), (5, None)]
    rows = [
        Row(str(i), Spread.of([accuracy]), trained=Spread.of([cost]))
        for i, (cost, accuracy) in enumerate(costs)
    ]
    pixels = Row("pixels", Spread.of([0.99]), baseline=True)
    front = Comparison("test/accuracy", (*rows, pixels)).front()
    scored = [(cost, accuracy) for cost, accuracy in costs if accuracy is not None]
    unbeaten = [
        (cost, accuracy)
        for cost, accuracy in scored
        if not any(c <= cost and a >= accuracy and (c, a) != (cost, accuracy) for c, a in scored)
    ]
    assert [(row.trained.mean, row.accuracy.mean) for row in front] == unbeaten


@pytest.mark.parametrize(
    ("kinds", "told"),
    [
        (["peak_cuda_bytes"] * 2, "allocated on the GPU"),
        (["peak_process_rss_bytes"] * 2, "of the whole process since it started"),
        (["peak_cuda_bytes", "peak_process_rss_bytes"], "not comparable"),
    ],
)
def test_the_peak_memory_says_what_it_is_of(tmp_path, run, capsys, monkeypatch, kinds, told):
    monkeypatch.setenv("COLUMNS", "140")
    for seed, kind in enumerate(kinds):
        run(tmp_path, "lora", seed, 0.9, efficiency={kind: 2_500_000})
    compare(tmp_path)
    out = " ".join(capsys.readouterr().out.split())
    assert "2.5 MB" in out
    assert told in out


def test_a_label_is_no_markup(tmp_path, run, capsys):
    run(tmp_path, "[red]lora[/red] [/]", 0, 0.9)
    compare(tmp_path)
    assert "[red]lora[/red] [/]" in capsys.readouterr().out


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
        (["compare"], "the following arguments are required: DIR"),
        (["compare", "a", ".", "b"], "directory of runs, got a\nlightning-peft: expected a"),
        (["compare", ".", "--json", "--csv"], "not allowed with argument"),
        (["compare", ".", "-o", "file"], "expected a directory to write to, got the file file"),
    ],
    ids=["no directory", "no runs", "no argument", "two wrong", "two formats", "a file"],
)
def test_compare_refuses(tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
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
    assert score(None, "test/accuracy") == "-"
    assert score(Spread.of([0.934]), "test/accuracy") == "93.4 %"
    assert score(Spread.of([0.9, 0.92, None]), "test/accuracy") == "91.0 ± 1.4 %"


def test_a_score_that_is_no_part():
    assert score(Spread.of([0.934]), "test/rmse") == "0.934"
    assert score(Spread.of([12.0, 14.0]), "val/mae") == "13 ± 1.4"


@pytest.fixture
def errors(tmp_path, run):
    """Two methods that predict numbers, judged by the mean absolute error."""
    for seed in range(3):
        for method, error in (("lora", 3.5), ("linear_probe", 2.5)):
            run(
                tmp_path, method, seed, 0.9,
                metrics={"val/mae": 1.0, "test/mae": error + seed, "test/rmse": 9.0},
                objective={"name": "val/mae", "value": 1.0},
                task="regression",
            )  # fmt: skip
    return tmp_path


def test_less_of_an_error_is_better(errors):
    found = read(errors)
    assert found.metric == "test/mae"
    assert [row.label for row in found.rows] == ["linear_probe", "lora"]
    assert found.best.metrics["test/mae"] == 2.5
    # "lora" trains fewer parameters and errs more; "linear_probe" the reverse: both are on it
    assert [row.label for row in found.front()] == ["lora", "linear_probe"]
    assert as_json(found)["lower_is_better"] is True
    console = Console(record=True, width=160, file=io.StringIO())
    console.print(comparison_table(found, 160))
    text = console.export_text()
    assert "test mae" in text
    assert "3.5 ± 1" in text
    assert "%" not in text
    assert "lower test mae is better" in text


def test_runs_of_several_objectives_are_judged_by_accuracy(tmp_path, run):
    for seed, name in enumerate(("val/f1", "val/ece")):
        metrics = {"test/accuracy": 0.5, "test/f1": 0.4, "test/ece": 0.1}
        run(tmp_path, "lora", seed, 0.5, metrics=metrics, objective={"name": name, "value": 0.1})
    assert read(tmp_path).metric == "test/accuracy"


@pytest.mark.parametrize("ends", [[0.85, 0.95], [0.85], ["a", "b"], "x", {"a": 1}, [0.9, None]])
def test_the_interval_of_a_single_run(tmp_path, run, ends):
    run(tmp_path, "lora", 0, 0.9, intervals_95={"test/accuracy": ends})
    found = read(tmp_path)
    told = interval(found.rows[0], "test/accuracy")
    assert told == ("[85.0, 95.0]" if ends == [0.85, 0.95] else "")
    run(tmp_path, "lora", 1, 0.9, intervals_95={"test/accuracy": ends})
    assert interval(read(tmp_path).rows[0], "test/accuracy") == "", "seeds say more than one run"
    assert Spread.of([None]) is None
