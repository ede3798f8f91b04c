"""What the page makes of the files of a run's test: its mistakes, its classes, its reliability."""

import re
from xml.etree import ElementTree

import pytest

from lightning_peft.cli.comparing.comparison import comparison_of
from lightning_peft.cli.comparing.report import report_page
from lightning_peft.cli.comparing.runs import read_runs
from tests.support.pages import Page, plots_of, write_bins


@pytest.mark.parametrize(
    "confusion",
    ["", "a,b\n", "t,a,b\nx,1\n", "t,a\nx,one\n", "t,a\nx,-1\n", "t,a\nx,99999999999999999999\n"],
    ids=["empty", "no rows", "ragged", "words", "negative", "huge"],
)
@pytest.mark.usefixtures("sketched")
def test_a_broken_confusion_matrix_is_left_out(tmp_path, run, confusion):
    directory = run(tmp_path, "lora", 0, 0.9)
    (directory / "confusion.csv").write_text(confusion)
    (directory / "predictions.png").write_text("<svg onload=alert(1)>")
    page = Page(report_page(comparison_of(*read_runs([tmp_path]))))
    assert "Confusion matrix" not in " ".join(page.text)
    assert "img" not in page.tags


def test_many_classes_have_their_mistakes_and_no_matrix(tmp_path, run):
    directory = run(tmp_path, "lora", 0, 0.9)
    count = 31
    header = ",".join(["true", *(f"c{i}" for i in range(count))])
    rows = [
        ",".join(
            [f"c{i}", *(str(5 + (j == 0 and i == 3)) if j in (i, 0) else "0" for j in range(count))]
        )
        for i in range(count)
    ]
    (directory / "confusion.csv").write_text("\n".join([header, *rows]))
    words = " ".join(Page(report_page(comparison_of(*read_runs([tmp_path])))).text)
    assert "Confusion matrix" not in words
    assert re.search(r"c3\s+c0\s+6\s+54\.5 %", words), "6 of its 11 images"
    assert "Class by class" in words


def test_the_reliability_of_the_best_run(tmp_path, run):
    directory = run(tmp_path, "lora", 0, 0.9)
    write_bins(directory, "0.4,0.6,0.55,0.5,40\n0.8,1.0,0.95,0.9,160\n")
    text = report_page(comparison_of(*read_runs([tmp_path])))
    words = " ".join(" ".join(Page(text).text).split())
    assert "Reliability of the test's predictions" in words
    assert "80 to 100 %: 160 of 200, sure by 95.0 %, true 90.0 %" in words
    assert "expected calibration error 0.0500" in words, "0.2 * 0.05 + 0.8 * 0.05"
    plot = ElementTree.fromstring(plots_of(text)[-1])
    titles = [title.text for title in plot.iter("title")]
    assert len(titles) == 2
    assert {"40", "160"} <= {word.text for word in plot.iter("text")}
    low, high = (
        [float(y) for _, y in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path.get("d"))]
        for path in plot.iterfind(".//title/../path")
    )
    assert (max(high) - min(high)) / (max(low) - min(low)) == pytest.approx(0.9 / 0.5, abs=0.01)


@pytest.mark.parametrize(
    "text",
    ["", "0,1,0.5,x,3", "0,1,0.5,2,3", "0,1,nan,0.5,3", "1,0,0.5,0.5,3", "0,1,0.5,0.5,-3",
     "0,1,0.5", "0,1,0.5,0.5,3\n" * 300],
)  # fmt: skip
@pytest.mark.usefixtures("sketched")
def test_bins_of_somebody_else_are_left_out(tmp_path, run, text):
    directory = run(tmp_path, "lora", 0, 0.9)
    write_bins(directory, text)
    assert "Reliability" not in report_page(comparison_of(*read_runs([tmp_path])))
