"""Tables on a console of 80 columns: no name is broken, no number is cut off."""

import pytest
from rich.console import Console

from lightning_peft.cli.commands.ranking_table import print_ranking
from lightning_peft.cli.comparing.comparison import comparison_of
from lightning_peft.cli.comparing.grids import Grid, grid_tables
from lightning_peft.cli.comparing.runs import read_runs
from lightning_peft.cli.comparing.tables import comparison_table
from lightning_peft.ranking import Ranking
from lightning_peft.ranking.rank import Row


def lines_of(table, width=80):
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table)
    return [line.rstrip() for line in capture.get().splitlines()]


@pytest.mark.parametrize("name", ["linear_probe", "a_method_of_a_plugin_with_a_very_long_name"])
@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_comparison(tmp_path, run, name, width):
    for seed in range(3):
        run(tmp_path, name, seed, 0.9 + seed / 100, intervals_95={}, overrides=["shots=4"],
            efficiency={"peak_memory_bytes": 10**9}, ranks=1,
            seconds={"step": 0.0251, "total": 1234.0})  # fmt: skip
        run(tmp_path, "lora", seed, 0.8 + seed / 100, overrides=["shots=16"])
    comparison = comparison_of(*read_runs([tmp_path]))
    lines = lines_of(comparison_table(comparison, width), width)
    assert max(map(len, lines)) <= width
    assert any(name in line for line in lines)
    assert any("91.0 ± 1.0 %" in line for line in lines)
    assert "…" not in "".join(lines)
    text = " ".join(" ".join(lines).split())
    shown = lines[1].split()
    for column in ("step", "checkpoint", "total"):
        assert (column in shown) != (f"{column}" in text.partition("no room here for ")[2])


def test_a_grid_goes_on_in_a_second_table():
    header = ("method", *map(str, range(1, 11)))
    rows = tuple((name, *["97.7 ± 0.3 %"] * 10) for name in ("linear_probe", "lora"))
    tables = list(grid_tables(Grid("a title", header, rows, note="a note"), 80))
    assert len(tables) == 3
    texts = [lines_of(table) for table in tables]
    names = [name for lines in texts for name in lines[1 + (lines is texts[0])].split()[1:]]
    assert names == list(header[1:])
    assert [("a title" in "".join(lines), "a note" in "".join(lines)) for lines in texts] == [
        (True, False),
        (False, False),
        (False, True),
    ]
    for lines in texts:
        assert max(map(len, lines)) <= 80
        assert "…" not in "".join(lines)
        assert any("linear_probe" in line for line in lines)
    assert len(list(grid_tables(Grid("a title", header, rows), 200))) == 1


@pytest.mark.parametrize("by", ["probe", "h_score"])
@pytest.mark.parametrize("label", ["glyph_vit:random", "vit_tiny_patch16_224.augreg_in21k_ft_in1k"])
def test_a_ranking(capsys, monkeypatch, label, by):
    monkeypatch.setenv("COLUMNS", "80")
    scores = {"knn": 0.89, "logme": -0.05, "h_score": 6.62, "nleep": -1.12}
    rows = (Row(label, 1_288_000, 1.07, 128, 0.89, 0.108, 0.21, scores),)
    print_ranking(Ranking(by, rows, (), 100, 10, 5), [], None)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(label in line and "89.0 ± 10.8" in line for line in lines)
    assert "no room here for " in " ".join(lines)
    header = next(line for line in lines if "model" in line)
    assert ("H-score" in header) == (by == "h_score")
