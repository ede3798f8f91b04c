"""What was tried beside the evidence: other heads, their first weights, new draws of labels."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.evidence import draws, starts
from benchmarks.evidence.heads import heads
from benchmarks.evidence.plan import jobs
from benchmarks.evidence.starts import HELD, PENALTIES, held_out, logistic_head, table, tries
from benchmarks.evidence.summary import cells
from benchmarks.evidence.tasks import draw
from lightning_peft.errors import DataError
from tests.support.evidence import SCORES, a_task, finals


def test_both_first_heads_are_compared_seed_by_seed():
    timm = cells(finals({"lora": SCORES["norm"], "full": SCORES["full"]}))
    text = "\n".join(heads(timm, cells(finals({"lora": SCORES["lora"], "dora": [0.5] * 5}))))
    result = stats.ttest_rel(*(100 * np.array(SCORES[name]) for name in ("lora", "norm")))
    low, high = result.confidence_interval(0.95)
    told = f"+8.4 ({low:+.1f} to {high:+.1f}, p = {result.pvalue:.2g})"
    assert f"| `lora`, 10 a class | 61.4 | 69.8 | {told} |" in text
    assert text.count("10 a class") == 1  # only what was measured both ways
    assert [*heads(timm, {})] == []


@pytest.mark.parametrize("classes", [2, 3])
def test_a_head_that_begins_as_a_logistic_regression_is_scikit_learns(classes):
    random = np.random.default_rng(0)
    labels = np.arange(30) % classes
    features = random.normal(size=(30, 6)) * [1, 5, 0.1, 2, 1, 1] + labels[:, None] + 3
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    search = GridSearchCV(LogisticRegression(), {"C": PENALTIES}, scoring="neg_log_loss", cv=folds)
    best = search.fit(StandardScaler().fit_transform(features), labels).best_estimator_
    model = make_pipeline(StandardScaler(), best).fit(features, labels)
    head = torch.nn.Linear(6, classes).double()
    for own, value in zip(head.parameters(), logistic_head(features, labels), strict=True):
        own.data = torch.as_tensor(value)
    others = random.normal(size=(9, 6)) + 4
    got = head(torch.as_tensor(others)).softmax(-1).detach().numpy()
    np.testing.assert_allclose(got, model.predict_proba(others), atol=1e-9)


def test_heads_are_tried_on_items_that_are_neither_labelled_nor_tested():
    pool = range(600)
    task = a_task(labels=tuple(i % 2 for i in range(700)), pool=tuple(pool), test=(650,))
    held = held_out(task, 1)
    assert len({*held}) == HELD
    assert {*held} <= {*pool} - {*draw(task, 100, 1)}


def test_what_heads_begin_with_is_compared_seed_by_seed():
    scores = {"linear": [0.5, 0.6, 0.55], "ten_times": [0.6, 0.65, 0.66]}
    lines = [
        {"task": "cells", "method": start, "budget": 10, "seed": seed, "balanced_accuracy": score}
        for start, found in scores.items()
        for seed, score in enumerate(found)
    ]
    p = stats.ttest_rel(scores["ten_times"], scores["linear"]).pvalue
    row = next(
        line for line in table(lines) if "ten times the rate" in line and "cells, 10" in line
    )
    assert "| 63.7 | +8.7 (" in row
    assert f"p = {p:.2g})" in row
    assert len({*tries()}) == len([*tries()]) == 60


def test_first_weights_are_tried_after_a_setting_was_chosen(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(starts, "EVIDENCE", tmp_path / "evidence.jsonl")
    out = tmp_path / "starts.jsonl"
    wanted = "got none for lora on cells 10, lora on cells 25: `make evidence` chooses them"
    with pytest.raises(DataError, match=wanted):
        starts.main(["--only", "cells", "--out", str(out)])
    assert [*tmp_path.iterdir()] == []
    monkeypatch.undo()
    assert starts.main(["--only", "cells", "10", "--list", "--out", str(out)]) == 0
    assert capsys.readouterr().out == "15 of 15 runs left\n"
    with pytest.raises(SystemExit, match="^2$"):
        starts.main(["--processes", "2"])
    assert "unrecognized arguments: --processes 2" in capsys.readouterr().err


def test_a_finding_is_tested_again_on_draws_that_nobody_has_seen(tmp_path, monkeypatch, capsys):
    wanted = [*draws.asked()]
    assert len({*wanted}) == 40
    assert not {job.seed for job in wanted} & {job.seed for job in jobs()}
    new, random = [], np.random.default_rng(0)
    for task, budget in draws.FINDINGS:
        rows = {"full": [*random.random(10)], "lora": [*random.random(10)]}
        new += finals(rows, task, budget)
    for line in new:
        if line["task"] == "cells":
            line.update(elsewhere_accuracy=0.5, elsewhere_balanced_accuracy=line["f1"] / 2)
    (row,) = (line for line in draws.table(new, finals(SCORES)) if "solar cells, 10" in line)
    values = {
        method: [line["f1"] for line in new if (line["task"], line["method"]) == ("cells", method)]
        for method in draws.METHODS
    }
    less = 100 * (np.mean(values["lora"]) - np.mean(values["full"]))
    before = 100 * (np.mean(SCORES["lora"]) - np.mean(SCORES["full"]))
    assert f"| {before:+.1f} (" in row
    assert f"| {less:+.1f} (" in row
    assert "10 draws" in row
    assert [*draws.table(new[:20], finals(SCORES))] == []  # not measured to the end
    monkeypatch.setattr(draws, "EVIDENCE", tmp_path / "evidence.jsonl")
    with pytest.raises(DataError, match="got none for full on cells 10, lora on cells 10"):
        draws.main(["--only", "cells", "--list", "--out", str(tmp_path / "draws.jsonl")])
    monkeypatch.undo()
    assert draws.main(["--only", "lora", "--list", "--out", str(tmp_path / "draws.jsonl")]) == 0
    assert "20 of 20 runs left" in capsys.readouterr().out
