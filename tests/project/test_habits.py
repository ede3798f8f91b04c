"""The harness of ``make habits``: plan, tables and intervals on made-up results, tiny networks."""

import re
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks.evidence import train as training
from benchmarks.evidence.store import Store
from benchmarks.evidence.tasks import Task, draw
from benchmarks.habits import candidates as models
from benchmarks.habits import page as pages
from benchmarks.habits import run, work
from benchmarks.habits.candidates import CANDIDATES, data_changes, is_random
from benchmarks.habits.plan import jobs, matching
from benchmarks.habits.recipes import COMMON, HABITS, TASKS, contrasts, habits_of, recipes
from benchmarks.habits.summary import (
    Measured,
    agreement,
    measured,
    of_checkpoints,
    seeds_of,
    swapped,
    tau,
    worth,
)
from lightning_peft.errors import DataError


def test_a_contrast_differs_by_its_habit_alone():
    for task in TASKS:
        names = recipes(task)
        for habit, pairs in contrasts(task).items():
            for first, other in pairs:
                assert {first, other} <= set(names)
                assert habits_of(first, task) - habits_of(other, task) == {habit}
                assert habits_of(other, task) < habits_of(first, task)
            alone, left_out = pairs
            assert habits_of(alone[0], task) == {"model", habit}
            assert habits_of(left_out[0], task) == {*contrasts(task)}
    assert set(contrasts("cells")) == set(HABITS)
    assert set(contrasts("reviews")) == set(HABITS) - {"augment"}


def test_the_plan_has_every_run_once_and_pairs_the_first_seeds():
    asked = list(jobs())
    assert len({job.key for job in asked}) == len(asked)
    counts = Counter((job.kind, job.task, job.seed) for job in asked)
    for task in TASKS:
        assert [counts["habits", task, s] for s in range(6)] == [len(recipes(task))] * 5 + [0]
        assert [counts["rank", task, s] for s in range(4)] == [len(CANDIDATES[task])] * 3 + [0]
        assert len(CANDIDATES[task]) >= 8
    assert str(asked[0]) == "cells 25 a class, none, seed 0"
    some = [job for job in asked if matching(["reviews", "habits", "all", "none"], job)]
    assert {(job.task, job.method) for job in some} == {("reviews", "all"), ("reviews", "none")}
    with pytest.raises(
        DataError, match=r"Expected cells, reviews, .* after --only, got lora$|lora\."
    ):
        matching(["lora"], asked[0])


def test_what_is_left_is_listed(tmp_path, capsys):
    out = ["--out", str(tmp_path / "habits.jsonl")]
    assert run.main(["--list", "--only", "cells", "rank", *out]) == 0
    assert re.match(r"36 of 36 runs left, \d:\d\d h on one core", capsys.readouterr().out)


def test_tau_and_its_interval_are_those_of_scipy():
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 8, (1, 12)).astype(float)  # some are tied
    reached = scores + rng.normal(0, 3, (1, 12))
    every = np.ones((1, 12))
    found = tau(scores, reached, every, np.zeros((1, 1), int))
    assert found[0] == pytest.approx(stats.kendalltau(scores[0], reached[0]).statistic)
    # a resample with copies is scipy's tau of the copies
    drawn = rng.integers(12, size=12)
    counts = np.bincount(drawn, minlength=12)[None]
    expected = stats.kendalltau(scores[0, drawn], reached[0, drawn]).statistic
    assert tau(scores, reached, counts, np.zeros((1, 1), int))[0] == pytest.approx(expected)
    assert np.isnan(tau(scores * 0, reached, every, np.zeros((1, 1), int)))[0]
    of = Measured(tuple("abcdefghijkl"), (0,), {"probe": scores, "knn": -scores}, reached)
    first, other = agreement(of, resamples=2000)
    theirs = stats.bootstrap(
        (scores[0], reached[0]),
        lambda x, y: stats.kendalltau(x, y).statistic,
        paired=True, vectorized=False, method="percentile", n_resamples=600,
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    assert first.interval == pytest.approx((theirs.low, theirs.high), abs=0.08)
    assert other.tau == pytest.approx(-first.tau)
    assert other.interval == pytest.approx((-first.interval[1], -first.interval[0]))
    assert (first.ahead, first.ahead_interval) == (0.0, (0.0, 0.0))
    assert other.ahead == pytest.approx(-2 * first.tau)
    assert first.picked == pytest.approx(reached[0, scores[0].argmax()])


def test_tau_is_of_each_seeds_scores_with_the_mean_over_the_seeds():
    rng = np.random.default_rng(2)
    scores, reached = rng.normal(size=(3, 8)), rng.normal(size=(3, 8))
    drawn = np.array([[0, 2, 2]])
    mean = reached[[0, 2, 2]].mean(0)
    expected = np.mean([stats.kendalltau(scores[s], mean).statistic for s in (0, 2, 2)])
    assert tau(scores, reached, np.ones((1, 8)), drawn)[0] == pytest.approx(expected)


def a_line(kind, task, method, seed, score, **more):
    return {"kind": kind, "task": task, "method": method, "budget": 25, "seed": seed,
            "setting": None, "fold": None, "balanced_accuracy": score, "f1": score,
            "accuracy": 1 - score, "majority": 0.6, "all_cpu_seconds": 36.0, **more}  # fmt: skip


def made_up(task="cells", seeds=5):
    """Return runs in which each habit adds points of its own, and noise that a seed shares."""
    points = {"model": 0.2, "augment": 0.0, "regular": -0.02, "schedule": 0.04, "evaluate": 0.01}
    found = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed + 10)
        shared = rng.normal(0, 0.05)
        for recipe in recipes(task):
            habits = habits_of(recipe, task)
            score = 0.5 + shared + sum(points[h] for h in habits) + rng.normal(0, 0.006)
            more = {"elsewhere_balanced_accuracy": score - 0.1, "elsewhere_accuracy": 0.5}
            if "evaluate" in habits:
                more |= {f"last_weights_{n}": score - 0.03 for n in ("f1", "balanced_accuracy")}
                more |= {f"by_loss_{n}": score + 0.01 for n in ("f1", "balanced_accuracy")}
            found.append(a_line("habits", task, recipe, seed, score, **more))
        for place, name in enumerate(CANDIDATES[task] if seed < 3 else ()):
            scores = {f"score_{n}": place + rng.normal(0, 2) for n in
                      ("knn", "logme", "h_score", "nleep", "parameters")}  # fmt: skip
            found.append(
                a_line("rank", task, name, seed, 0.5 + place / 50, score_probe=place / 20, **scores)
            )
    return found


def test_what_a_habit_is_worth_is_paired_and_corrected_like_scipy():
    lines = made_up()
    found = worth(lines, "cells")
    raw = {}
    for habit, pair in found.items():
        for place, (first, other) in enumerate(contrasts("cells")[habit]):
            a, b = (
                list(seeds_of(lines, "cells", name, "balanced_accuracy").values())
                for name in (first, other)
            )
            expected = stats.ttest_rel(a, b)
            assert pair[place].difference == pytest.approx(np.mean(a) - np.mean(b))
            assert pair[place].interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
            raw[habit, place] = expected.pvalue
    order = sorted(raw, key=raw.get)
    assert found[order[0][0]][order[0][1]].p_holm == pytest.approx(10 * raw[order[0]])
    assert found["model"][0].difference == pytest.approx(20, abs=2)
    parts = of_checkpoints(lines, "cells")
    assert parts["by balanced accuracy, minus the last weights"].difference == pytest.approx(3)
    assert parts["by loss, minus the last weights"].difference == pytest.approx(4)
    cost = "last weights of four fifths of the labels, minus those of all"
    assert parts[cost].difference == pytest.approx(1 - 3, abs=1)


def test_a_seed_that_a_candidate_lacks_is_left_out_of_the_ranking():
    lines = made_up(seeds=3)
    assert measured([], "cells") is None
    cut = [x for x in lines if (x["kind"], x["seed"], x["method"]) != ("rank", 2, "glyph_vit")]
    assert measured(lines, "cells").seeds == (0, 1, 2)
    found = measured(cut, "cells")
    assert found.seeds == (0, 1)
    assert found.reached.shape == (2, len(CANDIDATES["cells"]))
    assert not any(map(is_random, found.without_random().names))
    # a probe that orders the models as fine-tuning does
    assert agreement(found)[0].tau == 1


def test_pairs_in_the_other_order():
    assert swapped({"a": (1, 3), "b": (2, 2), "c": (3, 4)}) == (1, 3)


def test_the_page_says_what_the_results_say(tmp_path, capsys):
    store = Store(tmp_path / "habits.jsonl", COMMON)
    for line in made_up():
        store.add(line)
    arguments = ["--results", str(store.path), "--page", str(tmp_path / "habits.md")]
    assert pages.main(arguments) == 0
    text = (tmp_path / "habits.md").read_text(encoding="utf-8")
    difference = worth(store.lines, "cells")["schedule"][0]
    assert difference.p_holm < 0.05
    assert f"warm-up and decay alone is worth {difference.difference:+.1f} (" in text
    unclear = [HABITS[h] for h, pair in worth(store.lines, "cells").items()
               if all(one.p_holm >= 0.05 for one in pair)]  # fmt: skip
    assert "augmentation" in unclear
    assert f"No difference is shown by {' and '.join(unclear)}." in text
    assert "the probe, orders them with a tau of +1.00 (+1.00 to +1.00)" in text
    assert "Always answering the largest class is right on 60.0 %." in text
    assert "| augmentation | " in text
    assert "Drug reviews" not in text  # of which nothing was measured
    assert pages.main([*arguments, "--check"]) == 0
    store.add(a_line("habits", "reviews", "none", 0, 0.4))
    assert pages.main([*arguments, "--check"]) == 1
    assert "has gone stale" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="^2$"):
        pages.main(["--results", str(tmp_path / "none.jsonl")])
    assert "which is missing: make habits" in capsys.readouterr().err


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Return a task of bright and dark images, with a tiny network for the large one."""
    import timm
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(60):
        pixels = rng.integers(0, 60, (32, 32)) + 150 * (i % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{i}.png")
    monkeypatch.setattr(training, "WORK", tmp_path / "work")
    monkeypatch.setattr(work, "WORK", tmp_path / "work")
    monkeypatch.setitem(training.RECIPE, "cells", {"batch": 8, "pixels": 32})
    monkeypatch.setattr(work, "LITE", "test_efficientnet")
    real = timm.create_model
    monkeypatch.setattr(  # there are no weights to load
        timm, "create_model", lambda name, pretrained=False, pretrained_cfg_overlay=None, **kw:
        real(name, **kw)
    )  # fmt: skip
    monkeypatch.setattr(work, "lite_weights", lambda folder: tmp_path)
    return Task(
        name="cells",
        items=tuple(str(tmp_path / f"{i}.png") for i in range(60)),
        labels=tuple(i % 2 for i in range(60)),
        classes=("whole", "broken"),
        pool=tuple(range(40)),
        test=tuple(range(40, 50)),
        elsewhere=tuple(range(50, 60)),
    )


@pytest.mark.slow
def test_all_habits_are_taken_and_the_chosen_weights_are_tested(tiny, monkeypatch):
    modules, seen, loaded = [], {}, []
    build, data, test = work._classifier, work.data_of, work._test
    monkeypatch.setattr(work, "_classifier", lambda *a: modules.append(build(*a)) or modules[-1])
    monkeypatch.setattr(work, "data_of", lambda *a, **kw: seen.update(kw) or data(*a, **kw))

    def tested(trainer, module, data, path=None):
        found = test(trainer, module, data, path)
        if path:
            kept = torch.load(path, weights_only=True)["state_dict"]["backbone.classifier.weight"]
            loaded.append(torch.equal(module.backbone.classifier.weight, kept))
        return found

    monkeypatch.setattr(work, "_test", tested)
    found = work.fine_tune(tiny, "all", draw(tiny, 10, 0), seed=0, steps=6)
    assert found["steps"] == 6
    assert 0 <= found["epoch"] <= 5
    assert 0.5 <= found["validated"] <= 1
    assert loaded  # elsewhere, with the chosen weights
    assert all(loaded)
    assert 0 <= found["elsewhere_accuracy"] <= 1
    assert seen["augment"] == "light"
    assert modules[0].hparams.label_smoothing == 0.1
    assert list((training.WORK / "checkpoints").iterdir()) == []


def test_without_any_habit_nothing_is_held_out(tiny):
    found = work.fine_tune(tiny, "none", draw(tiny, 10, 0), seed=0, steps=6)
    assert "epoch" not in found
    assert found["steps"] == 6


def test_a_candidate_is_scored_and_fine_tuned(tiny, monkeypatch):
    monkeypatch.setattr(work, "data_changes", lambda *a: {"backbone": "test_efficientnet"})
    monkeypatch.setattr(
        work, "build", lambda task, name: models._network(2, "test_efficientnet", 1, True)
    )
    found = work.rank(tiny, "cut", draw(tiny, 10, 0), seed=0, steps=6)
    assert found["score_probe"] >= 0.9  # bright against dark
    assert found["score_parameters"] < sum(
        p.numel() for p in models._network(2, "test_efficientnet", None, True).parameters()
    )
    assert found["steps"] == 6
    assert "elsewhere_accuracy" not in found


def test_a_cut_encoder_has_the_first_layers(monkeypatch):
    from transformers import BertConfig, BertModel

    from benchmarks.evidence.models import MeanPooled

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 4}
    encoder = BertModel(BertConfig(vocab_size=16, num_attention_heads=2, **sizes)).eval()
    wanted = encoder(
        torch.tensor([[1, 2, 3]]), attention_mask=torch.ones(1, 3), output_hidden_states=True
    ).hidden_states[2]
    monkeypatch.setattr(models, "sentence_model", lambda classes, _: MeanPooled(encoder, classes))
    model = models._encoder(3, 2, True)
    model.head = torch.nn.Identity()
    found = model(input_ids=torch.tensor([[1, 2, 3]]), attention_mask=torch.ones(1, 3))
    assert torch.allclose(found, wanted.mean(1))


def test_a_candidates_head_starts_as_that_of_a_ready_module():
    for level in (None, 1):
        model = models._network(2, "test_efficientnet", level, False)
        wide = torch.nn.Linear(model.num_features, 2)
        assert model.get_classifier().weight.std() < 2 * wide.weight.std()


def test_candidates_see_images_as_they_expect_them():
    assert data_changes("reviews", "minilm@3") == {}
    assert data_changes("cells", "glyph_vit:random") == {
        "backbone": "glyph_vit", "image_size": None,
    }  # fmt: skip
    cut = data_changes("cells", "tf_efficientnet_lite1@3")
    assert cut == {"backbone": "tf_efficientnet_lite1", "image_size": 112}
