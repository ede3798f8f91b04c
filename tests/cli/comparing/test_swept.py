"""A number that was swept: the metric against it, and rivals that saw the same labels."""

import json
import statistics
from xml.etree import ElementTree

import pytest

from lightning_peft.cli.comparing.charts import by_number
from lightning_peft.cli.comparing.comparison import comparison_of
from lightning_peft.cli.comparing.publish import compare
from lightning_peft.cli.comparing.runs import read_runs
from lightning_peft.cli.comparing.swept import swept_grid, swept_json, swept_numbers

ACCURACY = {"lora": {1: 0.5, 4: 0.7, 16: 0.9}, "full": {1: 0.4, 4: 0.75, 16: 0.8}}


@pytest.fixture
def sweep(tmp_path, run):
    for method, by_shots in ACCURACY.items():
        for shots, accuracy in by_shots.items():
            for seed in range(3):
                run(
                    tmp_path, method, seed, accuracy + seed**2 / 100, overrides=[f"shots={shots}"],
                    baselines={"nearest_neighbour": 0.3 + shots / 100 + seed / 1000},
                )  # fmt: skip
    return tmp_path


def read(directory):
    return comparison_of(*read_runs([directory]))


def test_a_line_for_each_method_by_rising_value(sweep):
    (swept,) = swept_numbers(read(sweep))
    assert swept.key == "shots"
    assert swept.values == (1.0, 4.0, 16.0)
    assert swept.is_log
    lora, full, pixels = swept.lines
    assert [line.label for line in swept.lines] == ["lora", "full", "1-NN on pixels"]
    assert [value for value, _ in lora.points] == [1.0, 4.0, 16.0]
    mean = sum(0.75 + seed**2 / 100 for seed in range(3)) / 3
    assert full.points[1][1].accuracy.mean == pytest.approx(mean)
    assert pixels.baseline
    assert [row.accuracy.mean for _, row in pixels.points] == pytest.approx([0.311, 0.341, 0.461])


def test_rivals_saw_the_same_labels(sweep):
    contrasts = read(sweep).contrasts
    assert [(found.first, found.other) for found in contrasts] == [
        ("lora shots=16", "full shots=16"),
        ("full shots=4", "lora shots=4"),
        ("lora shots=1", "full shots=1"),
    ]
    assert all(found.count == 3 for found in contrasts)


def test_a_choice_of_the_method_leaves_all_rows_rivals(tmp_path, run):
    for rank in (4, 8):
        run(tmp_path, "lora", 0, rank / 10, overrides=[f"method.rank={rank}"])
    comparison = read(tmp_path)
    assert len(comparison.contrasts) == 1
    (swept,) = swept_numbers(comparison)
    assert (swept.key, swept.is_log) == ("method.rank", False)


def test_what_is_swept_beside_it_sets_the_lines_apart(tmp_path, run):
    for shots in (1, 2):
        for size in (16, 32):
            words = [f"shots={shots}", f"data.batch_size={size}", "augment=none"]
            run(tmp_path, "lora", 0, shots / 10 + size / 100, overrides=words)
    found = {swept.key: [line.label for line in swept.lines] for swept in
             swept_numbers(read(tmp_path))}  # fmt: skip
    assert found == {
        "data.batch_size": ["lora shots=2", "lora shots=1"],
        "shots": ["lora data.batch_size=32", "lora data.batch_size=16"],
    }


@pytest.mark.parametrize(
    "overrides",
    [[["model.backbone=a"], ["model.backbone=b"]], [["shots=1"], ["shots=nan"]],
     [["shots=1"], ["lr=0.1"]]],
    ids=["words", "no number", "two keys"],
)  # fmt: skip
def test_nothing_is_swept_where_no_number_is(tmp_path, run, overrides):
    for words in overrides:
        run(tmp_path, "lora", 0, 0.5, overrides=words)
    assert swept_numbers(read(tmp_path)) == ()


def test_runs_that_failed_are_no_points(tmp_path, run):
    run(tmp_path, "lora", 0, 0.5, overrides=["shots=1"])
    run(tmp_path, "lora", 0, None, overrides=["shots=2"], status="failed", error="no")
    assert swept_numbers(read(tmp_path)) == ()


def test_the_table_has_a_column_for_each_value(sweep, run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    run(sweep, "ssf", 0, 0.6, overrides=["shots=4"])
    (swept,) = swept_numbers(read(sweep))
    grid = swept_grid(swept, "test/accuracy")
    assert grid.header == ("method", "1", "4", "16")
    compare(sweep)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["test", "accuracy", "by", "shots"] in lines
    assert ["ssf", "-", "60.0", "%", "-"] in lines


def test_the_chart_has_a_line_with_its_spread_for_each_method(sweep):
    comparison = read(sweep)
    (swept,) = swept_numbers(comparison)
    chart = by_number(comparison, swept)
    plot = ElementTree.fromstring(chart.svg)
    lines = [group for group in plot.iter("g") if group.find("title") is not None]
    assert [group.find("title").text for group in lines] == ["lora", "full", "1-NN on pixels"]
    assert [group.find("path").get("d").count("L") + 1 for group in lines] == [3, 3, 3]
    (axes,) = chart.figure.axes
    for bars, method in zip(axes.containers[:2], ("lora", "full"), strict=True):
        line, _, (spread,) = bars.lines
        for shots, (x, y) in zip((1, 4, 16), line.get_xydata(), strict=True):
            found = [100 * (ACCURACY[method][shots] + seed**2 / 100) for seed in range(3)]
            assert (x, y) == pytest.approx((shots, statistics.mean(found)))
            low, high = spread.get_segments()[(1, 4, 16).index(shots)][:, 1]
            assert (high - low) / 2 == pytest.approx(statistics.stdev(found))
    labels = [node.text for node in plot.iter("text")]
    ticks = [text for text in labels if text in ("1", "2", "4", "8", "16")]
    assert ticks == ["1", "4", "16"]
    assert "shots" in labels
    assert [text for _, text in chart.keys] == ["lora", "full", "1-NN on pixels"]


def test_the_files_have_it_too(sweep):
    comparison = compare(sweep)
    (swept,) = swept_numbers(comparison)
    content = json.loads((sweep / "comparison.json").read_text())
    assert content["swept"] == [swept_json(swept)]
    labels = {row["label"] for row in content["rows"]}
    points = [point for line in content["swept"][0]["lines"] for point in line["points"]]
    assert len(points) == 9
    assert {point["row"] for point in points} <= labels
    assert (sweep / "comparison_shots.png").stat().st_size > 1000
    assert "test accuracy by shots" in (sweep / "report.html").read_text()
