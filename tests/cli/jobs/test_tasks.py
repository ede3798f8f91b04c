"""The command on every task: train, the table, the files, predict, export, compare."""

import csv
import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.config.task import (
    check_objective,
    fit_to_task,
    refuse_merge_at_end,
    refuse_test_monitors,
)

SHORT = (
    *("data=folder", "data.num_workers=0", "data.flip_safe=true", "data.batch_size=8"),
    *("trainer=cpu", "trainer.max_steps=4", "bootstrap=50", "callbacks.progress=null"),
)

LABELS = {
    "classes": ("file,label", lambda i: ["cat", "dog"][i % 2]),
    "binary": ("file,label", lambda i: ["cat", "dog"][i % 2]),
    "multilabel": ("file,tags", lambda i: ["", "x", "y", "x|y"][i % 4]),
    "regression": ("file,height", lambda i: f"{100 + i % 4}.5"),
}


@pytest.fixture
def images(tmp_path):
    random = np.random.default_rng(0)
    root = tmp_path / "images"
    root.mkdir()
    for i in range(40):
        pixels = 60 * (i % 4) + random.integers(0, 60, (24, 24), dtype=np.uint8)
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{i}.png")
    for name, (header, label) in LABELS.items():
        lines = [header, *(f"{i}.png,{label(i)}" for i in range(40))]
        (root / f"{name}.csv").write_text("\n".join(lines))
    return root


def with_and_without(command, images, tmp_path, kind):
    """What is predicted with the temperature of a run, without it, and by default."""
    found = {}
    for flag in ("", "--calibrated", "--no-calibrated"):
        words = ("predict", "run", str(images), "--out", "again.csv", *filter(None, [flag]))
        status, _, err = command(*words)
        if kind == "regression" and flag == "--calibrated":
            assert status == 2
            assert "--calibrated: run has no temperature: it predicts numbers" in err
            return
        assert status == 0, err
        found[flag] = (tmp_path / "again.csv").read_text()
    assert found[""] == found["--calibrated"] != found["--no-calibrated"]
    status, _, err = command("export", "run/adapter", "--out", "it.safetensors", "--calibrated")
    assert status == 2
    assert "an adapter directory holds no temperature" in err
    words = ("export", "run", "--out", "it.safetensors", "--no-calibrated")
    status, _, err = command(*words)
    assert status == 0, err
    assert json.loads((tmp_path / "it.safetensors.json").read_text())["outputs"]["temperature"] == 1


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=pytest.mark.slow) if k in ("binary", "classes") else k for k in LABELS],
)
def test_the_whole_way(train, command, images, tmp_path, kind):
    words = (f"data.root={images}", f"data.labels={kind}.csv", "output_dir=run")
    task = "multiclass" if kind == "classes" else kind
    chosen = ("data.task=binary",) if kind == "binary" else ()
    calibrated = () if kind == "regression" else ("calibrate=temperature",)
    status, out, err = train(*SHORT, *words, *chosen, *calibrated)
    assert status == 0, err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    main = "rmse" if kind == "regression" else "accuracy"
    assert summary["task"] == task
    assert summary["objective"]["name"] == f"val/{main}"
    low, high = summary["intervals_95"][f"test/{main}"]
    assert low <= summary["metrics"][f"test/{main}"] <= high
    assert f"test {main}" in out
    assert " to " in out
    assert "95 % intervals" in out
    facts = json.loads((tmp_path / "run" / "serving.json").read_text())
    assert facts["outputs"]["task"] == task
    tables = {path.name for path in (tmp_path / "run").glob("*.csv")}
    expected = {
        "classes": {"per_class.csv", "confusion.csv", "reliability.csv"},
        "binary": {"per_class.csv", "confusion.csv", "reliability.csv"},
        "multilabel": {"per_label.csv", "reliability.csv"},
        "regression": {"per_number.csv"},
    }[kind]
    assert expected == tables - {"predictions.csv"}
    assert (tmp_path / "run" / "predictions.png").exists() == (kind in ("classes", "binary"))
    if calibrated:
        assert facts["outputs"]["temperature"] == summary["temperature"] != 1
        assert "fitted on validation" in out
        assert {"test/ece", "test/ece_uncalibrated"} <= set(summary["metrics"])
        held = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
        assert held["hyper_parameters"]["temperature"] == summary["temperature"]

    status, out, err = command("predict", "run", str(images), "--out", "found.csv")
    assert status == 0, err
    with (tmp_path / "found.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40
    if kind == "regression":
        assert list(rows[0]) == ["path", "height"]
        assert all(90 < float(row["height"]) < 115 for row in rows), "in the unit of the data"
    elif kind == "multilabel":
        assert list(rows[0]) == ["path", "labels", "probability_x", "probability_y"]
        for row in rows:
            probable = [name for name in "xy" if float(row[f"probability_{name}"]) > 0.5]
            assert sorted(filter(None, row["labels"].split("|"))) == probable
    else:
        assert {row["class"] for row in rows} <= {"cat", "dog"}
        assert all(0.5 <= float(row["probability"]) <= 1 for row in rows)
    with_and_without(command, images, tmp_path, kind)

    status, out, err = command("export", "run", "--out", "model.safetensors")
    assert status == 0, err
    assert (
        json.loads((tmp_path / "model.safetensors.json").read_text())["outputs"]
        == (facts["outputs"])
    )

    status, out, err = command("compare", "run")
    assert status == 0, err
    found = json.loads((tmp_path / "run" / "comparison.json").read_text())
    assert found["metric"] == f"test/{main}"
    assert f"test {main}" in out
    page = (tmp_path / "run" / "report.html").read_text()
    assert ("Confusion matrix" in page) == (kind in ("classes", "binary"))
    assert ("Reliability" in page) == (kind != "regression")


@pytest.mark.parametrize(("kind", "told"), [("multilabel", "label"), ("regression", "deviation")])
def test_show_and_rank(command, images, kind, told):
    words = ("data=folder", f"data.root={images}", f"data.labels={kind}.csv", "data.num_workers=0",
             "data.flip_safe=true")  # fmt: skip
    status, out, err = command("show", "model=glyph_vit", *words)
    assert status == 0, err
    assert "images: 29 train, 3 val, 8 test" in out
    assert told in out
    status, _, err = command("rank", "models=[glyph_vit:random]", *words)
    assert status != 0
    assert f"has one class, got '{kind}'" in err


def test_numbers_have_no_settings_of_classes(train, images):
    words = (f"data.root={images}", "data.labels=regression.csv", "model.mixup=0.2")
    status, _, err = train(*SHORT, *words, "model.label_smoothing=0.1")
    assert status == 2
    assert "model.mixup: expected a setting for regression" in err
    assert "model.label_smoothing: expected a setting for regression" in err


def test_problems_of_the_labels_are_told(train, images):
    (images / "bad.csv").write_text("file,v\nnone.png,1.5\n0.png,x\n")
    status, _, err = train(*SHORT, f"data.root={images}", "data.labels=bad.csv",
                           "data.task=regression")  # fmt: skip
    assert status == 2
    assert "missing file" in err
    assert "is not a number" in err


def test_a_regressor_is_not_calibrated(train, images):
    words = (f"data.root={images}", "data.labels=regression.csv", "calibrate=temperature")
    status, _, err = train(*SHORT, *words)
    assert status == 2
    assert "calibrate: expected a classifier, got ImageRegressor" in err


def test_without_validation_nothing_is_calibrated(train):
    status, _, err = train(
        "data.val_per_class=0", "callbacks=no_validation", "calibrate=temperature"
    )
    assert status == 2
    assert "calibrate: expected a validation split" in err


@pytest.mark.parametrize("name", ["best", "stop"])
def test_nothing_is_chosen_on_the_test_set(train, name):
    words = ("callbacks/stop=early", f"callbacks.{name}.monitor=test/accuracy")
    status, _, err = train(*words)
    assert status == 2
    assert f"callbacks.{name}.monitor: 'test/accuracy' is a metric of the test set" in err
    assert "Monitor 'val/accuracy'" in err


def test_all_monitors_of_the_test_set_at_once():
    found = {"a": {"monitor": "test/f1"}, "b": None, "c": {"monitor": "TEST/loss"}, "d": {}}
    with pytest.raises(ConfigError, match=r"(?s)callbacks.a.monitor.*callbacks.c.monitor"):
        refuse_test_monitors(found)
    refuse_test_monitors({"a": {"monitor": "val/accuracy"}, "b": {"monitor": None}})
    refuse_test_monitors(None)


def test_a_run_keeps_its_adapter_to_the_end():
    with pytest.raises(ConfigError, match=r"callbacks.peft.merge_at_end: .*checkpoints=merged"):
        refuse_merge_at_end({"peft": {"merge_at_end": True}, "best": None})
    refuse_merge_at_end({"peft": {"merge_at_end": False}, "best": {}})


OPTUNA = {"n_trials": 3, "direction": "maximize"}


def test_a_search_is_told_no_metric_of_the_test_set():
    with pytest.raises(
        ConfigError, match=r"'test/f1' is a metric of the test set.*'val/f1'.*allow_test"
    ):
        check_objective({"objective": "test/f1"}, OPTUNA)
    allowed = {"objective": "test/f1", "allow_test_objective": True}
    for cfg, sweeper in ((allowed, OPTUNA), ({"objective": "test/f1"}, None)):
        assert "no unbiased test score" in check_objective(cfg, sweeper)
    assert check_objective({"objective": "test/f1"}, {"params": {}}) is not None, "a plain sweep"
    assert check_objective({"objective": None}, OPTUNA) is None
    assert check_objective({"objective": "val/f1"}, OPTUNA) is None


def test_the_direction_of_a_search():
    told = check_objective({"objective": "val/rmse"}, OPTUNA)
    assert told == "the sweeper would maximize val/rmse, but it should minimize it"
    assert check_objective({"objective": "val/rmse"}, {"direction": "minimize"}) is None


def test_a_module_of_the_users_own_is_left_alone():
    cfg = OmegaConf.create({"model": {"_target_": "mine.Module"}, "callbacks": {"best": {
        "monitor": "val/accuracy", "mode": "max"}, "off": None}})  # fmt: skip
    before = OmegaConf.to_container(cfg)
    fit_to_task(cfg, "multiclass")
    assert OmegaConf.to_container(cfg) == before
    fit_to_task(cfg, "regression")
    assert cfg.model == {"_target_": "mine.Module"}
    assert cfg.callbacks.best == {"monitor": "val/rmse", "mode": "min"}
