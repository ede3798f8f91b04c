"""The summary is whole or the old one, and is JSON that every program reads."""

import json
import os

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.runs.summary import (
    objective,
    read_summary,
    record_failure,
    write_json,
    write_summary,
    write_text,
)


def test_numbers_that_json_does_not_have_are_null(tmp_path):
    write_json(tmp_path / "a.json", {"nan": float("nan"), "list": [float("inf"), 1.5], "n": None})
    content = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    assert content == {"nan": None, "list": [None, 1.5], "n": None}


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_text(path, "old")

    def refuse(*args):
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="the disk is full"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["summary.json"]


def test_files_have_the_permissions_of_any_other(tmp_path):
    write_text(tmp_path / "a", "text")
    (tmp_path / "b").write_text("text")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_parts_of_a_summary_are_merged(tmp_path, monkeypatch):
    monkeypatch.setattr(HydraConfig, "initialized", lambda: False)  # an earlier test's job
    cfg = OmegaConf.create({"seed": 7})
    summary = write_summary(tmp_path, cfg, status="completed", method={"config": {"rank": 1}})
    assert summary["method"] == {"name": None, "config": {"rank": 1}}
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary["seed"] == 7


def test_a_failure_is_recorded_by_the_first_rank_only(tmp_path, monkeypatch):
    cfg = OmegaConf.create({"seed": 0, "output_dir": str(tmp_path)})
    monkeypatch.setenv("LOCAL_RANK", "1")
    record_failure(cfg, ConfigError(["wrong"]))
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("LOCAL_RANK", "0")
    record_failure(cfg, ConfigError(["wrong"]))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["status"], summary["error"]) == ("failed", "wrong")


def test_recording_a_failure_never_raises():
    record_failure(OmegaConf.create({"output_dir": "${nowhere}"}), RuntimeError("of the job"))


@pytest.mark.parametrize(
    ("metrics", "name"),
    [
        ({"val/loss": 0.1, "val/rmse": 2.0, "test/rmse": 3.0}, "val/rmse"),
        ({"val/loss": 0.1, "val/f1": 0.2, "val/accuracy": 0.5}, "val/accuracy"),
        ({"test/f1": 0.2, "val/own": 0.1}, "val/own"),
        ({"test/accuracy": 0.2}, None),
    ],
)
def test_where_nothing_chose_a_run_is_judged_by_the_main_metric_of_its_task(metrics, name):
    assert objective(None, metrics) == (name, metrics.get(name))


@pytest.mark.parametrize("text", [None, "", "[]", "{" * 100_000, "\x00"])
def test_a_summary_that_cannot_be_read_says_nothing(tmp_path, text):
    if text is not None:
        (tmp_path / "summary.json").write_text(text)
    assert read_summary(tmp_path) == {}


def test_a_text_with_a_name_that_is_no_text_is_written(tmp_path):
    write_text(tmp_path / "page.html", os.fsdecode(b"caf\xe9"))
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == "caf\\udce9"
