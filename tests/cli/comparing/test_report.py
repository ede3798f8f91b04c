"""The page holds everything, asks nobody for anything, and runs nothing that a file smuggled in."""

import base64
import errno
import hashlib
import os
import re
import sys
from xml.etree import ElementTree

import pytest

from lightning_peft.cli import main as serve
from lightning_peft.cli.comparing import figures
from lightning_peft.cli.comparing.comparison import comparison_of
from lightning_peft.cli.comparing.publish import compare
from lightning_peft.cli.comparing.report import report_page
from lightning_peft.cli.comparing.runs import read_runs
from tests.support.pages import Page, plots_of, write_bins

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}&amp;\x07"


def log(directory, offset):
    (directory / "csv").mkdir()
    lines = ["lr-AdamW,step,train/loss,val/accuracy"]
    lines += [f"{0.1 / (s + 1)},{s},{2 / (s + 1) + offset},{0.5 + s / 40}" for s in range(10)]
    (directory / "csv" / "metrics.csv").write_text("\n".join(lines))


def left_by_a_test(directory, names=("zero", "one", HOSTILE)):
    header = ",".join('"' + name.replace('"', '""') + '"' for name in ("true", *names))
    rows = [f'"{i}",' + ",".join(str(10 * (i == j) + j) for j in range(3)) for i in range(3)]
    (directory / "confusion.csv").write_text("\n".join([header, *rows]))
    (directory / "predictions.png").write_bytes(b"\x89PNG\r\n\x1a\n of a kind")


@pytest.fixture
def sweep(tmp_path, run):
    for seed in range(4):
        for method, accuracy in (("lora", 0.9 + seed / 100), ("ssf", 0.8 - seed**2 / 200)):
            baselines = {"nearest_neighbour": 0.7, HOSTILE: 0.6}
            directory = run(tmp_path, method, seed, accuracy, baselines=baselines)
            log(directory, seed / 10)
            left_by_a_test(directory)
    run(tmp_path, HOSTILE, 0, 0.5, overrides=[f"method.layers={HOSTILE}"])
    run(tmp_path, "ia3", 0, None, status="failed", error=HOSTILE)
    run(tmp_path, "dora", 0, None, status="running", process={"id": 1, "host": "elsewhere"})
    broken = tmp_path / "<b>broken" / "summary.json"
    broken.parent.mkdir()
    broken.write_text("{")
    return tmp_path


@pytest.fixture
def text(sweep):
    return report_page(comparison_of(*read_runs([sweep])))


def test_the_page_has_everything(text):
    page = Page(text)
    words = " ".join(" ".join(page.text).split())
    for part in (
        "9 of 11 runs completed. The first by test accuracy is lora.",
        "paired t-test 4 p",
        "too few seeds: 1 in both",
        "not finished: dora, seed 0: unfinished",
        "<b>broken",
        "test accuracy against trained parameters",
        "test accuracy against total time",
        "validation accuracy by step",
        "training loss by step",
        "learning rate by step",
        "Confusion matrix",
        "What was mistaken most",
        "Class by class",
        "1-NN on pixels",
    ):
        assert part in words, part
    assert page.tags.count("svg") == 5
    assert ("th", "scope", "row") in page.attributes
    assert page.tags.count("caption") >= 3


def test_the_page_has_the_tables_beside_the_main_one(tmp_path, run, capsys):
    for task, accuracy in (("cifar", 0.7), ("svhn", 0.8)):
        for rate in ("0.1", "[/b]<b>"):
            told = [
                {"name": "val/accuracy", "value": accuracy, "direction": "maximize"},
                {"name": "total_seconds", "value": 100 * accuracy, "direction": "minimize"},
            ]
            words = [f"data.task={task}", f"lr={rate}"]
            run(tmp_path, "lora", 0, accuracy, overrides=words, objectives=told)
        run(tmp_path, "lora", 1, 0.6, overrides=[f"data.task={task}", "lr=0.2"], objectives=told)
    compare(tmp_path, output=tmp_path / "out")
    printed = " ".join(capsys.readouterr().out.split())
    page = " ".join(" ".join(Page((tmp_path / "out" / "report.html").read_text()).text).split())
    for part in (
        "test accuracy by lr",
        "Pareto set: ",
        "of 6 runs, which no other run beats",
        "total seconds (least)",
        "VTAB-1k, mean accuracy",
        "2 of 19",
        "'groups' is the mean of the three groups",
        "lora lr=[/b]<b>",
    ):
        assert part in printed, part
        assert part in page, part


def test_what_comes_from_files_is_text(text):
    page = Page(text)
    assert page.tags.count("script") == 1
    assert "alert" not in " ".join(page.scripts)
    assert page.tags.count("img") == 1, "the predictions, and none of the hostile ones"
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    words = " ".join(page.text)
    assert "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}&amp;" in words
    plots = [ElementTree.fromstring(plot) for plot in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]
    drawn = {"".join(element.itertext()) for plot in plots for element in plot.iter("title")}
    hostile = HOSTILE.replace("\x07", "\\x07")
    assert [words for words in drawn if hostile in words], "in the pictures too"


def test_the_page_asks_nobody_for_anything(text):
    page = Page(text)
    names = [value for _, name, value in page.attributes if name == "id"]
    assert len(names) == len(set(names)), "two pictures share no name"
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            inside = value.startswith("#") and value[1:] in names
            assert inside or value.startswith("data:image/png;base64,"), (tag, name, value)
        for target in re.findall(r"url\((.*?)\)", value):
            assert target[0] == "#", (tag, name, value)
            assert target[1:] in names
    assert not {"link", "iframe", "object", "base", "form"} & set(page.tags)
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style


def test_the_policy_of_the_page_allows_its_own_script_alone(text):
    policy = next(
        v for t, n, v in Page(text).attributes if (t, n) == ("meta", "content") and "'" in v
    )
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_every_plot_is_xml_has_a_name_and_stays_in_its_frame(text):
    plots = plots_of(text)
    assert len(plots) == 5
    for plot in plots:
        root = ElementTree.fromstring(plot)
        assert root.get("role") == "img"
        assert len(root.get("aria-label")) > 10
        _, _, width, height = map(float, root.get("viewBox").split())
        assert (width, height) > (400, 200)
        for defined in root.findall(".//defs/.."):
            defined.remove(defined.find("defs"))
        for element in root.iter():
            assert -1 <= float(element.get("x", 0)) <= width + 1
            assert -1 <= float(element.get("y", 0)) <= height + 1
            for x, y in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", element.get("d", "")):
                assert -1 <= float(x) <= width + 1
                assert -1 <= float(y) <= height + 1


def test_every_colour_is_a_variable_of_the_page(text):
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    light, dark, printed = re.findall(r":root {(.*?)}", style, re.DOTALL)
    of_page = dict(re.findall(r"(--\w+): (#\w+)", light))
    of_files = {name: colour for colour, name in figures.VARIABLES.items()}
    assert of_page == of_files, "a light page has the colours of a file"
    for sheet in (dark, printed):
        assert of_files.keys() <= set(re.findall(r"(--\w+): #", sheet))
    assert "--page: #0d1117" in dark
    for plot in plots_of(text):
        looks = [element.get("style", "") for element in ElementTree.fromstring(plot).iter()]
        used = set(re.findall(r"var\((.*?)\)", " ".join(looks)))
        assert {"--text", "--soft", "--line", "--page"} < used < of_page.keys()
        assert not re.search(r"#|rgb|black|white", " ".join(looks))
        assert "<style" not in plot, "it would be the whole page's"
        words = list(ElementTree.fromstring(plot).iter("text"))
        assert all("fill: var(" in word.get("style") for word in words)


def test_the_same_runs_have_the_same_page(sweep, text):
    assert report_page(comparison_of(*read_runs([sweep]))) == text
    assert not re.search(r"\b20\d\d-\d\d", "".join(plots_of(text))), "no date"


def test_without_matplotlib_the_page_has_its_tables_and_names_the_extra(sweep, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    page = Page(report_page(comparison_of(*read_runs([sweep]))))
    words = " ".join(" ".join(page.text).split())
    assert words.count("pip install 'lightning-peft[viz]'") == 1
    assert "svg" not in page.tags
    for part in ("9 of 11 runs completed", "paired t-test 4 p", "Confusion matrix", "Some of its"):
        assert part in words, part


def test_a_page_of_failed_runs_alone_is_a_page(tmp_path, run):
    run(tmp_path, "lora", None, None, status="failed", error="the disk is full")
    page = Page(report_page(comparison_of(*read_runs([tmp_path]))))
    assert "0 of 1 runs completed" in " ".join(page.text)
    assert "svg" not in page.tags


def test_many_rows_have_curves_that_can_be_told_apart(tmp_path, run):
    for i in range(14):
        log(run(tmp_path, "lora", 0, 0.9 - i / 100, overrides=[f"lr={i}"]), 0.0)
    text = report_page(comparison_of(*read_runs([tmp_path])))
    assert "The first 12 rows; 2 more are left out." in text
    assert text.count("border-top: 2px dashed var(--c0)") == 3, "in the key of each plot of curves"
    for plot in plots_of(text)[-3:]:
        assert re.search(r'style="[^"]*stroke-dasharray[^"]*var\(--c0\)', plot)


def test_long_names_break_where_their_parts_end_and_nowhere_else(tmp_path, run):
    for decay, file in (("0.99", "b"), ("0.9", "c")):
        name = f"callbacks.average.decay={decay}"
        run(tmp_path, "lora", 0, 0.9, overrides=[name, f"data.root=/a/{file}.csv"])
    text = report_page(comparison_of(*read_runs([tmp_path])))
    assert "callbacks.<wbr>average.<wbr>decay=<wbr>0.99</span>" in text
    assert "data.<wbr>root=<wbr>/<wbr>a/<wbr>b.<wbr>csv</span>" in text
    assert "0.<wbr>9" not in text, "a number is no name"
    assert "lora callbacks.average.decay=0.9 data.root=/a/c.csv" in "".join(Page(text).text)
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    for cells in re.findall(r"([^{}]*\.word[^{}]*){([^}]*)}", style):
        assert "anywhere" not in cells[1], cells
    tables = len(re.findall("<table", text))
    assert len(re.findall(r'<div class="scroll"[^>]*>\s*<table', text)) == tables


def test_texts_are_called_texts(tmp_path, run):
    for method in ("lora", "bitfit"):
        left_by_a_test(run(tmp_path, method, 0, 0.9, noun="texts"), names=("bad", "so so", "good"))
        write_bins(tmp_path / "0_lora", "0.4,0.6,0.55,0.5,40\n")
    found = comparison_of(*read_runs([tmp_path]))
    words = " ".join(" ".join(Page(report_page(found)).text).split())
    assert "100 labelled texts trained" in words
    assert "Texts of the test set" in words
    assert "40 texts, expected calibration error" in words
    assert "images" not in words
    run(tmp_path, "ssf", 0, 0.8)
    assert comparison_of(*read_runs([tmp_path])).noun == "samples"


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        (r"method.layers=last\:2", "method.layers=last:2"),
        (r"data.root='C:\\:'", r"data.root='C:\\:'"),
        ("+lr=0.1", "lr=0.1"),
    ],
)
def test_an_override_of_a_sweep_reads_as_it_was_typed(tmp_path, run, typed, read):
    run(tmp_path, "lora", 0, 0.9, overrides=[typed])
    ((found,), _) = read_runs([tmp_path])
    assert read in found.overrides


def test_a_file_that_cannot_be_written_is_left_out_with_one_line(
    run, tmp_path, monkeypatch, capsys
):
    run(tmp_path, "lora", 0, 0.5)
    own = os.fsync

    def flush(file):
        if os.readlink(f"/proc/self/fd/{file}").endswith(".comparison.csv"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        own(file)

    def fails(*_):
        raise RuntimeError("no font")

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(figures, "new_figure", fails)
    assert compare(tmp_path) is not None
    out = capsys.readouterr().out
    assert "no picture: RuntimeError: no font" in out
    assert re.search(r"no comparison\.csv: .*comparison\.csv: expected room", out)
    assert f"report     {tmp_path / 'report.html'}" in out
    assert "No pictures: RuntimeError: no font" in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "comparison.csv").exists()
    assert (tmp_path / "comparison.json").is_file()
    assert serve(["compare", str(tmp_path)]) == 1
