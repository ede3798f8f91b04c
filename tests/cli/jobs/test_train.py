"""Tiny jobs from the command line to the last file."""

import csv
import importlib.util
import json
import os

import pytest
import torch
from omegaconf import OmegaConf

import lightning_peft as lp
from lightning_peft.cli.comparing.runs import read_runs
from lightning_peft.cli.runs.log import read_log

RUN = ("experiment=smoke", "hydra.run.dir=run")
FILES = (
    "config.yaml",
    "run.log",
    "summary.json",
    "per_class.csv",
    "confusion.csv",
    "predictions.png",
    "csv/metrics.csv",
    "checkpoints/best.ckpt",
    "checkpoints/last.ckpt",
    "adapter/adapter_model.safetensors",
    "adapter/adapter_config.json",
    ".hydra/overrides.yaml",
)


def test_a_run_leaves_its_files_and_its_numbers(train, tmp_path):
    status, out, err = train("method=lora", "method.rank=4", "seed=3", *RUN)
    assert status == 0, err
    run = tmp_path / "run"
    for name in FILES:
        assert (run / name).stat().st_size > 0, name

    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["method"]["name"] == "lora"
    assert summary["method"]["config"]["rank"] == 4
    assert summary["seed"] == 3
    assert summary["steps"] == 4
    assert "method.rank=4" in summary["overrides"]
    assert {"test/accuracy", "test/f1", "test/ece", "val/accuracy"} <= set(summary["metrics"])
    assert 0 < summary["parameters"]["trained"] < summary["parameters"]["total"]
    assert summary["bytes"]["checkpoint"] == (run / "checkpoints" / "best.ckpt").stat().st_size
    assert summary["seconds"]["step"] > 0
    assert summary["images"] == {"train": 20, "val": 100, "test": 797}
    assert summary["monitor"] == "val/accuracy"
    assert "torch" in summary["versions"]

    # the numbers are those of the files: an accuracy is the diagonal of the confusion matrix
    with (run / "confusion.csv").open() as file:
        counts = [list(map(int, row[1:])) for row in list(csv.reader(file))[1:]]
    right, total = sum(counts[i][i] for i in range(10)), sum(map(sum, counts))
    assert total == 797 or total == 512, "two batches of the test set"
    assert summary["metrics"]["test/accuracy"] == pytest.approx(right / total)
    weights = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    trained = sum(t.numel() for t in weights.values() if t.is_floating_point())
    assert trained == summary["parameters"]["trained"]

    resolved = OmegaConf.load(run / "config.yaml")
    assert resolved.data.seed == 3
    assert "${" not in (run / "config.yaml").read_text()

    assert "test accuracy" in out
    assert f"{100 * summary['metrics']['test/accuracy']:.1f} %" in out
    assert "4/4" in err
    assert "Warning" not in err
    assert os.environ.get("HYDRA_FULL_ERROR") is None


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(train, tmp_path):
    found = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        words = ("experiment=smoke", "callbacks=no_validation", "test=false", f"seed={seed}")
        status, _, err = train(*words, f"hydra.run.dir={name}")
        assert status == 0, err
        path = tmp_path / name / "checkpoints" / "best.ckpt"
        found[name] = torch.load(path, weights_only=True)["state_dict"]
    assert json.loads((tmp_path / "c" / "summary.json").read_text())["monitor"] is None
    assert found["a"].keys() == found["b"].keys()
    assert all(torch.equal(found["a"][key], found["b"][key]) for key in found["a"])
    assert any(not torch.equal(found["a"][key], found["c"][key]) for key in found["a"])


def test_a_run_is_resumed_from_its_last_checkpoint(train, tmp_path):
    words = ("experiment=smoke", "test=false", "schedule=none")
    assert train(*words, "trainer.max_steps=6", "hydra.run.dir=whole")[0] == 0
    assert train(*words, "trainer.max_steps=4", "hydra.run.dir=part")[0] == 0
    status, _, err = train(
        *words, "trainer.max_steps=6", "resume=part/checkpoints/last.ckpt", "hydra.run.dir=rest"
    )
    assert status == 0, err
    whole, rest = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=False)
        for name in ("whole", "rest")
    )
    assert whole["global_step"] == rest["global_step"] == 6
    for key, value in whole["state_dict"].items():
        assert torch.equal(value, rest["state_dict"][key]), key


def test_stopped_before_the_first_validation_there_is_a_checkpoint_all_the_same(train, tmp_path):
    status, _, err = train(*RUN, "trainer.max_steps=1", "test=false")
    assert status == 0, err
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").is_file()
    assert "val/accuracy" in json.loads((tmp_path / "run" / "summary.json").read_text())["metrics"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["method.rank=0"],
            "callbacks.peft: LoRA: expected rank to be a whole number from 1, got 0.",
        ),
        (["+method.rnk=4"], "method.rnk: lightning_peft.LoRA takes no 'rnk'. Did you mean 'rank'?"),
        (["model.backbone=glyphvit"], "model: timm has no model 'glyphvit'. Did you mean"),
        (["data.labels_per_class=1000"], "data: "),
        (
            ["data.val_per_class=0"],
            "callbacks: ModelCheckpoint monitors val/accuracy, but this",
        ),
        (["trainer.accelerator=gpuu"], "trainer: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_built_is_told_in_a_line(train, tmp_path, words, message):
    status, _, err = train(*RUN, *words)
    assert status == 2
    assert err.startswith(f"lightning-peft: {message}"), err
    assert len(err.splitlines()) == 1
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert summary["error"] in err


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_a_logger_that_is_not_installed_names_its_extra(train):
    status, _, err = train(*RUN, "logger=wandb")
    assert status == 2
    assert err.startswith("lightning-peft: logger.wandb: ")
    assert "pip install 'lightning-peft[wandb]'" in err


def test_a_refusal_of_the_method_by_this_backbone_is_told_as_it_is(train):
    status, _, err = train(*RUN, "method.targets=[attentoin]")
    assert status == 2
    assert "'attentoin' matches no module of this model" in err
    assert all(line.startswith("lightning-peft: ") for line in err.splitlines())


def test_a_job_that_fails_keeps_its_traceback_and_its_status_is_1(train, tmp_path):
    (tmp_path / "broken.py").write_text(
        "import lightning.pytorch as pl\n"
        "class Broken(pl.Callback):\n"
        "    def on_train_batch_end(self, *args):\n"
        "        raise RuntimeError('of the user')\n"
    )
    import sys

    sys.path.insert(0, str(tmp_path))
    try:
        status, _, err = train(*RUN, "+callbacks.broken._target_=broken.Broken")
    finally:
        sys.path.remove(str(tmp_path))
    assert status == 1
    assert "raise RuntimeError('of the user')" in err
    assert "RuntimeError: of the user" in err.splitlines()[-1]
    assert "Error executing job" not in err


def test_a_run_says_that_it_is_under_way_and_logs_its_learning_rate(train, tmp_path, monkeypatch):
    (tmp_path / "watch.py").write_text(
        "import pathlib, shutil\n"
        "import lightning.pytorch as pl\n"
        "class Watch(pl.Callback):\n"
        "    def on_train_start(self, *args):\n"
        "        shutil.copytree('run', 'then')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ("+callbacks.watch._target_=watch.Watch", "trainer.log_every_n_steps=1")
    status, _, err = train(*RUN, *words, "test=false", "schedule=linear")
    assert status == 0, err
    (then,) = read_runs([tmp_path / "then"])[0]
    # nobody is at work in the copy
    assert (then.status, then.method, then.metrics) == ("interrupted", "lora", {})
    summary = json.loads((tmp_path / "then" / "summary.json").read_text(encoding="utf-8"))
    assert summary["status"] == "running"
    assert read_runs([tmp_path / "run"])[0][0].completed
    rates = [rate for _, rate in read_log(tmp_path / "run")["lr"]]
    assert len(rates) == 4
    highest = OmegaConf.load(tmp_path / "run" / "config.yaml").lr
    schedule = lp.WarmupLinear(warmup=0.1).multiplier(4)
    assert rates == pytest.approx([highest * schedule(step) for step in range(4)])


@pytest.mark.parametrize("words", [["logger=none"], ["schedule=none"]])
def test_without_a_log_or_a_schedule_a_run_is_a_run(train, tmp_path, words):
    status, _, err = train(*RUN, "test=false", "trainer.log_every_n_steps=1", *words)
    assert status == 0, err
    assert "Warning" not in err
    assert ("lr" in read_log(tmp_path / "run")) is ("logger=none" not in words)


def test_a_loss_that_is_not_finite_is_told_in_a_line_and_is_status_1(train):
    status, _, err = train(*RUN, "method=full", "lr=1e30", "trainer.gradient_clip_val=null")
    assert status == 1
    assert "Expected a finite loss, got nan" in err.splitlines()[-1]
    assert "Traceback" not in err


def test_a_probe_goes_on_as_full_fine_tuning_from_its_head(train, tmp_path):
    status, _, err = train(*RUN, "method=lp_ft", "trainer.max_steps=6")
    assert status == 0, err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 6
    weights = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert "backbone.blocks.0.attn.qkv.weight" in weights["state_dict"]  # thawed after two epochs


def test_without_validation_the_last_weights_are_tested(train, tmp_path):
    words = ("callbacks=no_validation", "data.val_per_class=0")
    status, _, err = train(*RUN, *words)
    assert status == 0, err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["images"] == {"train": 20, "val": 0, "test": 797}
    assert "val/accuracy" not in summary["metrics"]
    assert "test/accuracy" in summary["metrics"]
    best = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["global_step"] == summary["steps"] == 4
