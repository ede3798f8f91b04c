"""The harness of ``make rates``: plan, tables on made-up results, a tiny run, and what it found."""

import math

import pytest

from benchmarks.evidence.plan import Job
from benchmarks.evidence.store import Store
from benchmarks.rates import falls as falling
from benchmarks.rates import networks, page, run, tables
from lightning_peft.cli.config.auto_rate import start_of
from lightning_peft.cli.config.paths import conf_dir


def test_the_plan_has_every_run_once_and_every_method_of_the_package(tmp_path, capsys):
    asked = list(run.jobs())
    assert len({job.key for job in asked}) == len(asked)
    configs = {path.stem for path in (conf_dir() / "method").glob("*.yaml")}
    assert configs - set(falling.METHODS) == {"hf", "union"}  # which have to be told of what
    for network in networks.NETWORKS:
        of_network = [job for job in asked if job.task == network]
        assert {job.method for job in of_network if job.kind == "falls"} == set(falling.METHODS)
        assert {"lora", "full"} <= {job.method for job in of_network if job.kind == "choose"}
    for method, rates in run.RATES.items():
        assert start_of(method) in rates
    out = ["--out", str(tmp_path / "rates.jsonl")]
    assert run.main(["--list", "--only", "lora", "minilm", "choose", *out]) == 0
    assert capsys.readouterr().out.startswith("4 of 4 runs left")


def a_line(network, rate, score, method="lora"):
    return {
        "kind": "choose", "task": network, "method": method, "rate": rate, "plain_loss": 1 - score,
        "balanced_accuracy": score,
    }  # fmt: skip


LINES = [
    a_line("lite0", 1e-3, 0.70),
    a_line("lite0", 3e-3, 0.60),
    a_line("minilm", 1e-3, 0.50),
    a_line("minilm", 3e-3, 0.55),
]


def test_the_tables_say_what_a_rate_costs():
    assert tables.behind(LINES, "lora") == {
        1e-3: [0.0, pytest.approx(5.0)],
        3e-3: [pytest.approx(10.0), 0.0],
    }
    single = "\n".join(tables.single(LINES, ["lora"]))
    assert "| `lora` | 2 | **2.5** (5.0) | *5.0 (10.0)* |" in single
    cheapest = "\n".join(tables.cheapest(LINES, ["lora"]))
    assert cheapest == (
        "- `lora`, 2 networks: of single rates 0.001 costs least, 2.5 points in the mean and 5.0 "
        "at worst; the default, 0.003, costs 5.0 and\n  10.0."
    )
    searched = [
        {**a_line("lite0", 1e-3, 0.68), "kind": "auto", "tried": {"0.01": 1, "0.001": 0.2}},
        {**a_line("minilm", 3e-3, 0.55), "kind": "auto", "tried": {"0.003": 0.2}},
    ]
    found = list(tables.auto(searched, LINES))
    assert "| `lora`, `lite0` | 0.001, 0.01 | 0.001 | 68.0 | 60.0 | 70.0 (0.001) |" in found
    assert "| `lora`, `minilm` | 0.003 | 0.003 | 55.0 | 55.0 | 55.0 (0.003) |" in found
    assert found[-1] == (
        "In the mean the rate found is 1.0 points behind the best (2.0 at worst), the default 5.0 "
        "(10.0 at worst)."
    )
    assert "| `minilm` | 50.0 (0.50) | **55.0** (0.45) |" in list(tables.of_method(LINES, "lora"))


def test_the_tables_say_which_losses_fall():
    lines = [
        {"method": method, "task": "lite0", "first_loss": first, "last_loss": last}
        for method, first, last in [
            ("lora", 0.7, 0.1), ("full", 0.7, 0.9), ("ssf", 0.7, math.nan), ("ia3", None, None)
        ]
    ]  # fmt: skip
    text = "\n".join(tables.falling(lines))
    assert "It falls in 1 of 3" in text
    assert "`full` on `lite0` from 0.70 to 0.90, `ssf` on `lite0` from 0.70 to no finite" in text
    assert "| `ia3` | - |" in text
    assert "| `lora` | 0.70 to 0.10 |" in text


@pytest.mark.slow
def test_a_run_measures_on_items_that_nothing_else_uses(monkeypatch):
    monkeypatch.setattr(run, "STEPS", 2)
    monkeypatch.setattr(falling, "STEPS", 6)
    found = run.measure(Job("choose", "glyph_vit", "lora", networks.LABELS, 0, 3), 3, {})
    assert found["rate"] == 3e-3
    assert {"loss", "balanced_accuracy", "plain_loss", "last_loss"} <= set(found)
    found = run.measure(Job("auto", "glyph_vit", "full", networks.LABELS, 0), 0, {})
    assert start_of("full") in map(float, found["tried"])
    assert f"{found['rate']:g}" in found["tried"]
    fell = run.measure(Job("falls", "glyph_vit", "linear_probe", networks.LABELS, 0), 0, {})
    assert fell["rate"] == 1e-2
    assert fell["told"] == ""
    assert fell["first_loss"] is not None


def test_the_page_is_that_of_the_results():
    assert page.main(["--check"]) == 0


def test_every_default_of_the_package_lowers_the_loss_of_every_network():
    lines = [line for line in Store(run.RESULTS, run.RECIPE).lines if line["kind"] == "falls"]
    measured = {(line["task"], line["method"]) for line in lines}
    assert measured >= {(n, m) for n in networks.NETWORKS for m in falling.METHODS}
    # another default has to be measured again: --only falls METHOD, without its old lines
    assert [line["method"] for line in lines if line["rate"] != start_of(line["method"])] == []
    trained = [line for line in lines if line["first_loss"] is not None]
    assert [(line["task"], line["method"]) for line in trained if not tables.fell(line)] == []
