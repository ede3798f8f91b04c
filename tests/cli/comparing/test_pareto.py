"""What a comparison makes of the runs of a search: pruned ones, and those of several objectives."""

import csv
import io

import pytest

from lightning_peft.cli.comparing.comparison import comparison_of
from lightning_peft.cli.comparing.grids import grid_tables
from lightning_peft.cli.comparing.pareto import pareto_grid, pareto_json, pareto_set
from lightning_peft.cli.comparing.report import report_page
from lightning_peft.cli.comparing.runs import read_runs
from lightning_peft.cli.comparing.tables import as_csv, as_json, comparison_table, notes


def read(directory):
    return comparison_of(*read_runs([directory]))


def lines_of(table):
    from rich.console import Console

    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return capture.get().splitlines()


def test_a_pruned_run_is_counted_and_is_in_no_mean(tmp_path, run):
    run(tmp_path, "lora", 0, 0.9)
    run(tmp_path, "lora", 1, 0.1, status="pruned", steps=20)
    run(tmp_path, "full", 0, 0.1, status="pruned", steps=40)
    comparison = read(tmp_path)
    lora, full = comparison.rows
    assert (lora.accuracy.mean, lora.seeds, lora.pruned, lora.unfinished) == (0.9, (0,), 1, ())
    assert (full.accuracy, full.pruned, full.failed) == (None, 1, ())
    assert comparison.best.seed == 0
    told = "pruned: 2 of 3 runs, stopped by their search after 20 to 40 steps"
    assert any(told in note for note in notes(comparison))
    table = lines_of(comparison_table(comparison))
    assert [line for line in table if line.strip().startswith("lora") and "1 of 2" in line]
    assert not [line for line in table if "full" in line]
    page = report_page(comparison)
    assert told in page
    assert ">full<" not in page
    assert [row["pruned"] for row in as_json(comparison)["rows"]] == [1, 1]
    rows = list(csv.DictReader(io.StringIO(as_csv(comparison))))
    assert [row["pruned"] for row in rows] == ["1", "1"]


def objectives(accuracy, trained, way="maximize"):
    return [
        {"name": "val/accuracy", "value": accuracy, "direction": way},
        {"name": "trained_parameters", "value": trained, "direction": "minimize"},
    ]


def test_the_pareto_set_of_runs(tmp_path, run):
    for seed, told in enumerate([(0.9, 500.0), (0.8, 100.0), (0.7, 200.0), (0.95, 1e6)]):
        run(tmp_path, "lora", seed, 0.5, objectives=objectives(*told))
    run(tmp_path, "lora", 4, 0.5, status="pruned", objective={"name": "val/accuracy"})
    found = pareto_set(read(tmp_path))
    assert found.count == 4
    assert [member.seed for _, member in found.members] == [3, 0, 1]
    assert as_json(read(tmp_path))["pareto"] == pareto_json(found)
    assert [member["values"] for member in pareto_json(found)["members"]] == [
        [0.95, 1e6],
        [0.9, 500.0],
        [0.8, 100.0],
    ]
    table = lines_of(*grid_tables(pareto_grid(found)))
    assert "Pareto set: 3 of 4 runs" in table[0]
    assert "lora, seed 3" in table[4]
    assert "95.0 %" in table[4]
    assert "1,000,000" in table[4]


@pytest.mark.parametrize(
    "other",
    [
        None,
        objectives(0.9, 5.0, way="minimize"),
        objectives(0.9, None),
        objectives(0.9, 5.0)[:1],
        "x",
    ],
    ids=["none", "another direction", "not measured", "one alone", "no list"],
)
def test_runs_that_do_not_share_their_objectives_have_no_pareto_set(tmp_path, run, other):
    run(tmp_path, "lora", 0, 0.5, objectives=objectives(0.9, 5.0))
    run(tmp_path, "full", 0, 0.5, objectives=other)
    assert pareto_set(read(tmp_path)) is None
    assert as_json(read(tmp_path))["pareto"] is None
