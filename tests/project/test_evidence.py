"""The harness of ``make evidence``, on made-up results, made-up images and a tiny network."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks.evidence import draws
from benchmarks.evidence import page as pages
from benchmarks.evidence import train as training
from benchmarks.evidence.methods import BASELINES, Setting, settings, trained_methods
from benchmarks.evidence.models import renamed
from benchmarks.evidence.plan import Job, chosen, jobs, matching
from benchmarks.evidence.run import Runner
from benchmarks.evidence.store import Store
from benchmarks.evidence.summary import against, cells, costs, interval, on_average
from benchmarks.evidence.tasks import TASKS, check, draw, folds
from lightning_peft.errors import DataError
from tests.support.evidence import SCORES, a_task, finals

RECIPE = {"cells": {"steps": 6}}
# a fork of a process with threads, which do nothing in the child
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


def score_of(job, setting, tasks):
    """Return a line without training: the second setting is the best."""
    score = 0.5 + 0.1 * (setting == 1)
    return {"settings": str(setting), "balanced_accuracy": score, "loss": 1.0, "pid": os.getpid()}


def dies_at_the_third(job, setting, tasks):
    if setting == 1 and job.fold == 0:
        os._exit(7)
    return score_of(job, setting, tasks)


def test_a_run_that_was_stopped_goes_on_where_it_stopped(tmp_path):
    asked = [job for job in jobs(seeds=2) if matching(["cells", "lora", "25"], job)]
    assert [job.kind for job in asked] == ["choose"] * 6 + ["final"] * 2
    path, said = tmp_path / "results.jsonl", []
    first = Runner(Store(path, RECIPE), dies_at_the_third, said.append)
    first.run(asked)
    # without one of the folds nothing is chosen, so nothing is tested
    assert first.failed == [
        "cells 25 a class, lora, choice 1.0: exit 7",
        *(f"cells 25 a class, lora, seed {s}: its settings were not measured" for s in (0, 1)),
    ]
    before = path.read_bytes()
    path.write_bytes(before + b'{"kind": "choose", "task": "cel')  # cut by a loss of power
    second = Runner(Store(path, RECIPE), score_of, said.append)
    second.run(asked, processes=2)
    assert not second.failed
    assert path.read_bytes().startswith(before)
    lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    assert len(lines) == 8 == len({line["pid"] for line in lines})  # each once, in its own process
    assert {line["chosen"] for line in lines if line["kind"] == "final"} == {1}
    again = Runner(Store(path, RECIPE), score_of, said.append)
    again.run(asked)
    assert path.read_text().count("\n") == 9
    assert said[-1].startswith("3 of 3, 0:00 h left  cells 25 a class, lora, seed")


def test_results_of_another_recipe_and_lines_that_are_none_are_refused(tmp_path):
    Store(tmp_path / "results.jsonl", RECIPE).add({"kind": "final", "loss": 0.123456789})
    assert Store(tmp_path / "results.jsonl", RECIPE).lines[0]["loss"] == 0.123457
    with pytest.raises(DataError, match=r"Expected results of the recipe .* use another file"):
        Store(tmp_path / "results.jsonl", {"cells": {"steps": 7}})
    Store(tmp_path / "none" / "results.jsonl", RECIPE)  # which is made by the first run
    assert not (tmp_path / "none").exists()
    (tmp_path / "results.jsonl").write_text(json.dumps({"recipe": RECIPE}) + "\nnothing\n")
    with pytest.raises(DataError, match="Expected a JSON object in line 2"):
        Store(tmp_path / "results.jsonl", RECIPE)


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"test": (39, *range(40, 60))}, "1 items in the pool and in the test"),
        ({"labels": (0,) * 59}, "60 items with 59 labels"),
        ({"labels": (0,) * 60}, "no broken in the pool; no broken in the test"),
        ({"items": (*(f"{i}.png" for i in range(59)), "3.png")}, "1 items of the test that are in"),
    ],
)
def test_a_split_that_is_none_is_refused(changes, wrong):
    check(a_task())
    with pytest.raises(DataError, match=wrong):
        check(a_task(**changes))


def test_words_after_only_that_mean_nothing_are_refused():
    job = next(jobs())
    with pytest.raises(DataError, match=r"Expected cells, reviews, .* after --only, got loar, 26"):
        matching(["cells", "loar", "26"], job)


def test_weights_of_another_network_are_refused():
    given = {"a": torch.zeros(2, 3), "b": torch.ones(3)}
    found = renamed(given, {"x.weight": torch.empty(2, 3), "x.bias": torch.empty(3)})
    assert list(found) == ["x.weight", "x.bias"]
    assert torch.equal(found["x.bias"], given["b"])
    with pytest.raises(DataError, match="Expected the 1 tensors of timm's model in its order"):
        renamed(given, {"x": torch.empty(2, 3)})


def test_draws_are_equal_for_all_and_lie_inside_larger_ones():
    task = a_task()
    few, more = draw(task, 3, seed=1), draw(task, 8, seed=1)
    assert draw(task, 3, seed=1) == few != draw(task, 3, seed=2)
    assert set(few) < set(more) <= set(task.pool)
    assert [sum(task.labels[i] == c for i in more) for c in (0, 1)] == [8, 8]
    assert len(draw(task, 100, seed=0)) == 40  # all there are
    for train, val in folds(task, more):
        assert set(train) | set(val) == set(more)
        assert not set(train) & set(val)
        assert [sum(task.labels[i] == c for i in val) for c in (0, 1)] == [4, 4]


def test_the_choice_takes_the_best_mean_and_of_equal_ones_the_lowest_loss():
    def line(setting, fold, score, loss):
        return {"kind": "choose", "task": "cells", "method": "lora", "budget": 10, "fold": fold,
                "setting": setting, "balanced_accuracy": score, "loss": loss}  # fmt: skip

    job = Job("final", "cells", "lora", 10, 3)
    lines = [line(0, 0, 0.9, 1.0), line(0, 1, 0.5, 1.0), line(1, 0, 0.6, 0.1), line(1, 1, 0.8, 0.3)]
    assert chosen(lines, job) is None
    lines += [line(2, 0, 0.7, float("nan")), line(2, 1, 0.7, 0.0)]  # a loss that is none comes last
    assert chosen(lines, job) == 1
    assert chosen([*lines, line(2, 0, 0.9, 9.0)], job) == 2
    assert chosen(lines, Job("final", "cells", "lora", 25, 3)) is None
    flat = [
        row | {"last_loss": 0.69 if row["setting"] == 1 and row["fold"] else 0.1} for row in lines
    ]
    assert chosen(flat, job) == 0, "with the best one the loss did not fall in a fold"


def test_differences_are_paired_and_corrected_like_those_of_scipy():
    found = {c.first: c for c in against(cells(finals(SCORES)), "cells", 10)}
    full = 100 * np.array(SCORES["full"])
    raw = {}
    for name in ("lora", "norm", "linear_probe"):
        mine = 100 * np.array(SCORES[name])
        result = stats.ttest_rel(mine, full)
        raw[name] = result.pvalue
        assert found[name].difference == pytest.approx((mine - full).mean())
        assert found[name].interval == pytest.approx(tuple(result.confidence_interval(0.95)))
    # Holm by hand: the i-th smallest of three times 3, 2, 1, and no smaller than the one before
    order = sorted(raw, key=raw.get)
    by_hand, before = {}, 0.0
    for factor, name in zip((3, 2, 1), order, strict=True):
        before = by_hand[name] = max(before, min(1.0, factor * raw[name]))
    assert {name: c.p_holm for name, c in found.items()} == pytest.approx(by_hand)
    assert against(cells(finals({"lora": [0.5]})), "cells", 10) == []  # nothing to compare with


def test_the_mean_of_the_adapters_is_one_paired_test_over_those_with_all_seeds():
    found = cells(finals({**SCORES, "dora": [0.9]}))
    mean = 100 * np.mean([SCORES["lora"], SCORES["norm"]], axis=0)
    result = stats.ttest_rel(mean, 100 * np.array(SCORES["full"]))
    test = on_average(found, "cells", 10)
    assert test.p_holm == pytest.approx(result.pvalue)
    assert test.interval == pytest.approx(tuple(result.confidence_interval(0.95)))
    assert on_average(cells(finals({"full": [0.5] * 5, "lora": [0.6] * 5})), "cells", 10) is None


def test_the_interval_is_that_of_a_mean_by_students_t():
    values = [61.0, 64.0, 58.0, 70.0, 66.0]
    low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert interval(values) == pytest.approx((high - low) / 2)
    assert np.isnan(interval([61.0]))


def test_the_page_says_what_the_results_say(tmp_path):
    store = Store(tmp_path / "results.jsonl", training.RECIPE)
    for line in finals(SCORES):
        store.add(line)
    arguments = ["--results", str(store.path), "--docs", str(tmp_path)]
    assert pages.main(arguments) == 0
    text = (tmp_path / "evidence.md").read_text(encoding="utf-8")
    assert "Full fine-tuning reaches 61.2." in text
    assert "The mean of 2 adapters is +4.4 points (" in text
    assert "Corrected for all methods, `lora` is +8.6 points (" in text
    half = interval([100 * score for score in SCORES["lora"]])
    assert f"| `lora` | 69.8 ± {half:.1f} (69.8) |" in text
    assert "| `lora` | 10 | 0.00 MB | 1 MB | 0.533 s | 40.0 s |" in text
    assert costs(store.lines, "cells")["lora"].step == 32 / 60  # the median of five seeds
    for name in ("_cells_labels", "_cells_costs", ""):
        assert (tmp_path / f"evidence{name}.png").read_bytes().startswith(b"\x89PNG")
    assert pages.main([*arguments, "--check"]) == 0
    store.add(finals({"dora": [0.5]})[0])
    assert pages.main([*arguments, "--check"]) == 1
    assert "1 seed" in pages.page(store.lines)


def test_a_finding_names_only_what_was_measured():
    store = finals({name: SCORES[name] for name in ("full", "norm")})
    assert "Full fine-tuning reaches 61.2.\n  The best adapter is `norm`" in pages.page(store)


def test_the_readme_says_what_the_results_say():
    readme = " ".join((Path(__file__).parents[2] / "README.md").read_text("utf-8").split())
    results = Path(__file__).parents[2] / "benchmarks" / "results" / "evidence.jsonl"
    found = cells(Store(results, training.RECIPE).lines)
    for task, budget in (("cells", 10), ("cells", 25), ("cells", 100), ("reviews", 25)):
        here = {name: cell.mean for (t, b, name), cell in found.items() if (t, b) == (task, budget)}
        (test,) = [one for one in against(found, task, budget) if one.first == "lora"]
        low, high = test.interval
        untrained = max(mean for name, mean in here.items() if name in BASELINES)
        row = f"{here['lora']:.1f} | {here['full']:.1f} | {test.difference:+.1f} ({low:+.1f} to "
        row += f"{high:+.1f}) | {here['linear_probe']:.1f} | {untrained:.1f} |"
        assert row in readme
        if budget == 10:
            assert f"corrected p = {test.p_holm:.2g}" in readme
    again = list(draws.table(Store(results.parent / draws.RESULTS.name, training.RECIPE).lines, []))
    for row in again[-4:-2]:
        difference = row.split("|")[3].strip(" +").removesuffix(", 10 draws")
        assert f"by {difference}" in readme


def test_the_page_needs_results(tmp_path, capsys):
    with pytest.raises(SystemExit, match="^2$"):
        pages.main(["--results", str(tmp_path / "none.jsonl")])
    assert "which is missing: make evidence" in capsys.readouterr().err


def test_every_method_has_as_many_settings_and_its_configs_rate():
    from omegaconf import OmegaConf

    from lightning_peft.cli.config.paths import conf_dir

    for task in TASKS:
        assert len(trained_methods(task)) >= (12 if task == "types" else 15)
        for name in trained_methods(task):
            found = settings(name, task)
            assert len(found) == 3
            file = {"hf": "hf"}.get(name.partition(":")[0], name)
            config = OmegaConf.load(conf_dir() / "method" / f"{file}.yaml")
            if name == "lp_ft":  # of what follows the probe
                assert found[0].rate == config.callbacks.freeze.unfreeze[0].lr
            else:
                assert found[0].rate == (1e-3 if name == "full" else config.lr)  # as it was


@pytest.mark.parametrize("method", ["lora", "lp_ft", "linear_probe"])
def test_a_run_trains_what_its_method_says_and_measures_it(tmp_path, monkeypatch, method):
    import timm
    from PIL import Image

    import lightning_peft as lp

    rng = np.random.default_rng(0)
    for i in range(60):  # broken ones are bright
        pixels = rng.integers(0, 60, (32, 32)) + 150 * (i % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{i}.png")
    task = a_task(items=tuple(str(tmp_path / f"{i}.png") for i in range(60)))

    def tiny(task, method, setting):
        model = timm.create_model("test_efficientnet", num_classes=2)
        return lp.ImageClassifier(model, 2, lr=setting.rate, **setting.module)

    monkeypatch.setattr(training, "module_of", tiny)
    monkeypatch.setattr(training, "WORK", tmp_path / "work")
    monkeypatch.setitem(training.RECIPE, "cells", {"batch": 8, "pixels": 32})
    setting = Setting(0.01)
    found = training.train(
        task, method, setting, draw(task, 8, 0), task.test, seed=0, split="test", steps=12
    )
    assert found["steps"] == 12
    assert not found["stopped"]
    assert found["last_loss"] < found["first_loss"]
    assert 0.5 <= found["balanced_accuracy"] <= 1
    assert found["cpu_seconds"] > 0
    whole = sum(p.numel() for p in tiny(task, method, setting).parameters())
    head = 2 * 256 + 2
    trained = {"lp_ft": whole, "linear_probe": head}.get(method, found["trainable_parameters"])
    assert found["trainable_parameters"] == trained
    assert head <= found["trainable_parameters"] <= whole
