"""What the commands draw, as figures; tables as HTML."""

import json
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

import lightning_peft as lp


class Cells(HTMLParser):
    """The cells of a page, and its other text."""

    def __init__(self, text):
        super().__init__()
        self.cells, self.text, self.tag = [], "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tag = tag

    def handle_endtag(self, tag):
        self.tag = ""

    def handle_data(self, data):
        self.text += data
        if self.tag == "td":
            self.cells.append(data)


def net():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


@pytest.fixture
def sweep(tmp_path):
    for seed, (method, accuracy) in enumerate([("lora", 0.9), ("lora", 0.8), ("<b>", 0.5)]):
        run = {"method": {"name": method}, "seed": seed, "status": "completed"}
        run |= {"metrics": {"test/accuracy": accuracy}, "parameters": {"trained": 1000 + seed}}
        run |= {"objective": "val/accuracy"}
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / "summary.json").write_text(json.dumps(run), encoding="utf-8")
        (tmp_path / str(seed) / "metrics.csv").write_text(
            "step,train/loss\n0,2.0\n1,1.5\n", encoding="utf-8"
        )
    return tmp_path


def test_a_report_shows_in_a_notebook_what_it_prints():
    report = lp.adapt(net(), "lora", rank=2).report()
    shown = Cells(report._repr_html_())
    assert shown.cells[:3] == ["adapter", f"{report.adapter:,}", f"{report.adapter / 102:.2%}"]
    printed = str(report)
    assert all(cell in printed for cell in shown.cells)
    assert "trained bytes" in shown.text


def test_a_plan_shows_in_a_notebook_what_it_prints():
    plan = lp.plan(net(), "lora", rank=2, inputs=torch.ones(8, 4))
    shown, printed = Cells(plan._repr_html_()), str(plan)
    assert {"all", "weights", "peak"} <= set(shown.cells)
    assert all(cell in printed for cell in shown.cells)


def test_a_comparison_is_that_of_the_command_and_its_labels_are_no_markup(sweep):
    comparison = lp.compare(sweep)
    lora, _ = comparison.rows
    assert (lora.label, lora.accuracy.mean, lora.accuracy.count) == ("lora", pytest.approx(0.85), 2)
    html = comparison._repr_html_()
    assert "<b>" not in html.replace('<caption style="text-align: left"><b>', "")
    assert {"lora", "<b>"} <= set(Cells(html).cells)
    assert "lora" in str(comparison)


def test_figures_are_the_commands_own_and_show_themselves(sweep):
    comparison = lp.compare(sweep)
    scatter = lp.plot_comparison(comparison)
    assert scatter._repr_png_().startswith(b"\x89PNG")
    curves = lp.plot_curves(comparison)
    assert [list(line.get_ydata()) for line in curves.axes[0].lines] == [[2.0, 1.5]] * 2
    assert [text.get_text() for text in curves.legends[0].get_texts()] == ["lora", "<b>"]


def test_a_schedule_is_drawn_as_it_is_followed():
    schedule = lp.WarmupCosine(warmup=0.1)
    figure = lp.plot_schedule(schedule, 50, lr={"head": 1e-2, "adapter": 1e-3})
    head, adapter = figure.axes[0].lines
    multiplier = schedule.multiplier(50)
    assert list(head.get_ydata()) == [1e-2 * multiplier(step) for step in range(50)]
    assert adapter.get_ydata()[10] == pytest.approx(head.get_ydata()[10] / 10)
    length = lp.WarmupConstant(warmup="2 epochs")
    assert lp.plot_schedule(length, epoch_steps=5).axes[0].get_title("left").endswith("10 steps")


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda s: lp.compare(), lp.DataError, "directories of runs, got none"),
        (lambda s: lp.compare(s / "no"), lp.DataError, "no, which do not exist"),
        (lambda s: lp.compare(s / "empty"), lp.DataError, "got no summary.json"),
        (lambda s: lp.plot_comparison(lp.compare(s), "totl"), lp.DataError, "'totl'.*total"),
        (lambda s: lp.plot_comparison(lp.compare(s), "total"), lp.DataError, "got none"),
        (lambda s: lp.plot_curves(lp.compare(s), "train/los"), lp.DataError, "train/loss"),
        (lambda s: lp.plot_samples(object()), lp.DataError, "data module of images.*got object"),
        (lambda s: lp.plot_schedule("cosine", 9), lp.ScheduleError, "WarmupCosine.*got str"),
        (lambda s: lp.plot_schedule(lp.WarmupCosine()), lp.ScheduleError, "length|steps"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(sweep, call, error, match):
    (sweep / "empty").mkdir()
    with pytest.raises(error, match=match):
        call(sweep)
