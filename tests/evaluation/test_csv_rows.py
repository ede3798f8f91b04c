"""Cells of a CSV file that a spreadsheet would carry out as formulas."""

import csv
import io
import os

import pytest
import torch

from lightning_peft.evaluation.csv_rows import RowWriter, cell
from lightning_peft.evaluation.results import Evaluation
from lightning_peft.evaluation.tables import per_class_table


@pytest.mark.parametrize(
    "text", ["=cmd()", "=HYPERLINK(1)", "+1+cmd|x", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "-"]
)
def test_what_a_spreadsheet_would_carry_out_is_a_text(text):
    assert cell(text) == f"'{text}"


@pytest.mark.parametrize("value", ["a=b", "", "-1", "+0.5", "-inf", "1e-3", -1, -0.5, None, "été"])
def test_numbers_and_other_texts_stay_as_they_are(value):
    assert cell(value) is value


def test_rows_are_those_of_the_csv_module():
    ours, theirs = io.StringIO(), io.StringIO()
    rows = [["a", 1, -0.5], ['quo"ted', "x,y", None]]
    RowWriter(ours).writerows(rows)
    csv.writer(theirs, lineterminator="\n").writerows(rows)
    assert ours.getvalue() == theirs.getvalue()


def test_the_name_of_a_class_is_no_formula(tmp_path):
    confusion = torch.eye(2, dtype=torch.long)
    found = Evaluation({}, per_class_table(confusion, ["=cmd()", "b"]), confusion)
    for path in found.write_csv(tmp_path):
        with path.open(newline="") as file:
            cells = [text for row in csv.reader(file) for text in row]
        assert "'=cmd()" in cells
        assert "=cmd()" not in cells


def test_a_name_that_is_no_text_is_written_out(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")  # of a file, in another encoding than UTF-8
    with (tmp_path / "names.csv").open("w", newline="", encoding="utf-8") as file:
        RowWriter(file).writerows([[name, 1], ["\ud800=", 2]])
    assert (tmp_path / "names.csv").read_text(encoding="utf-8") == "caf\\udce9.png,1\n\\ud800=,2\n"
