"""A sweep that was interrupted goes on: what is done is not run again, nothing is mixed."""

import json
import shutil

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf

from lightning_peft.cli.config.errors import ConfigError, explain
from lightning_peft.cli.config.paths import conf_dir
from lightning_peft.cli.config.task import fit_to_task
from lightning_peft.cli.runs.log import read_log
from lightning_peft.cli.sweeps.earlier import CONFIG, LAST, Earlier, _changes, earlier_run
from lightning_peft.cli.sweeps.record import quoted
from lightning_peft.cli.sweeps.whole import job_line

pytestmark = pytest.mark.usefixtures("undrawn")

SWEEP = ("-m", "experiment=smoke", "hydra.sweep.dir=sweep", "method=linear_probe", "seed=0,1")
FIGURES = ("metrics", "objective", "parameters", "bytes", "steps")


def summaries(directory):
    found = {p.parent.name: json.loads(p.read_text()) for p in directory.glob("*/summary.json")}
    return {name: {key: summary.get(key) for key in FIGURES} for name, summary in found.items()}


def test_the_same_command_goes_on_and_ends_in_the_same_figures(train, tmp_path, interrupt):
    assert train(*SWEEP)[0] == 0
    whole = tmp_path / "whole"
    shutil.move(tmp_path / "sweep", whole)

    undo = interrupt(2, "seed 1")  # an epoch is two steps
    status, _, err = train(*SWEEP)
    assert status == 130, "as shells have it, and not as after a failed job"
    assert "lightning-peft continue sweep" in err
    undo()
    half = tmp_path / "sweep" / "1_linear_probe_seed1"
    assert torch.load(half / LAST, weights_only=True)["global_step"] == 2
    done = tmp_path / "sweep" / "0_linear_probe_seed0" / "summary.json"
    before = done.stat().st_mtime_ns

    status, out, err = train(*SWEEP)
    assert status == 0, err
    assert "job 1 of 2: seed=0: done already" in err
    assert "job 2 of 2: seed=1 (from its last checkpoint, about " in err
    assert done.stat().st_mtime_ns == before
    assert summaries(tmp_path / "sweep") == summaries(whole)
    for name in ("best.ckpt", "last.ckpt"):
        a, b = (
            torch.load(d / "1_linear_probe_seed1" / "checkpoints" / name, weights_only=True)
            for d in (tmp_path / "sweep", whole)
        )
        torch.testing.assert_close(a["state_dict"], b["state_dict"], rtol=0, atol=0)
    assert "2 seeds" in out
    resumed, never_stopped = (
        read_log(d / "1_linear_probe_seed1") for d in (tmp_path / "sweep", whole)
    )
    for name in ("val/accuracy", "val/loss"):  # Lightning counts the last step of a resumed run on
        assert [y for _, y in resumed[name]] == [y for _, y in never_stopped[name]]


def test_the_continue_command_and_a_failed_job_that_is_tried_again(train, command, tmp_path):
    words = ("-m", "experiment=smoke", "test=false", "data.labels_per_class=2,3000")
    status, out, err = train(*words, "method=linear_probe", "hydra.sweep.dir=a b")
    assert status == 1
    (failed,) = (tmp_path / "a b").glob("1_*")
    assert f"in a b/{failed.name}" in " ".join(out.split())  # the table names the directory
    assert f"lightning-peft: {failed}: " in err
    status, out, err = command("continue", "a b")
    assert status == 1
    first, second = (line for line in err.splitlines() if line.startswith("job "))
    assert first == "job 1 of 2: data.labels_per_class=2: done already"
    assert second.startswith("job 2 of 2: data.labels_per_class=3000 (about ")


def test_another_sweep_in_the_same_directory_is_refused(train, tmp_path):
    assert train(*SWEEP[:-1], "seed=0", "test=false")[0] == 0
    before = sorted(tmp_path.rglob("*"))
    status, _, err = train(*SWEEP[:-1], "seed=2,3", "test=false")
    assert status == 2
    assert "sweep holds another sweep: " in err
    lost = err.partition("which lacks the jobs: ")[2]
    assert "experiment=smoke method=linear_probe seed=0 test=False." in lost
    assert "choose another hydra.sweep.dir" in err
    assert sorted(tmp_path.rglob("*")) == before


def test_continue_refuses_what_is_no_sweep(command, tmp_path):
    status, _, err = command("continue", str(tmp_path))
    assert status == 2
    assert "expected the directory of a sweep with a sweep.json" in err


def job(directory, **values):
    config = {"seed": 0, "lr": 0.1, "resume": None, "output_dir": str(directory)}
    return OmegaConf.create({**config, "log": "${output_dir}/log", **values})


def left(directory, config, status=None):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG).write_text(OmegaConf.to_yaml(config, resolve=True))
    if status is not None:
        content = {"status": status, "objective": {"name": "val/accuracy", "value": 0.5}}
        (directory / "summary.json").write_text(json.dumps(content))


def test_a_job_is_known_by_its_config_wherever_it_lies(tmp_path):
    left(tmp_path / "now", job(tmp_path / "before"), "completed")
    assert earlier_run(job(tmp_path / "elsewhere")) == Earlier()
    found = earlier_run(job(tmp_path / "now"))
    assert found.summary is not None
    assert found.objective == 0.5


def test_a_job_of_another_config_is_refused_with_every_difference(tmp_path):
    left(tmp_path, job(tmp_path, seed=1, rank=8), "completed")
    with pytest.raises(ConfigError, match="holds a job of another config") as refused:
        earlier_run(job(tmp_path, lr=1))
    told = str(refused.value)
    for change in ("lr was 0.1, now 1", "rank was 8, now is not there", "seed was 1, now 0"):
        assert change in told


@pytest.mark.parametrize("left_of_it", [0, 1, 30, 60, 84, 95], ids=lambda n: f"{n} %")
def test_a_config_that_is_cut_off_is_not_that_of_another_job(tmp_path, left_of_it):
    config = job(tmp_path, method={"rank": 8}, callbacks={"best": {"mode": "max"}, "last": None})
    left(tmp_path, config, "completed")
    assert earlier_run(config).summary is not None
    text = (tmp_path / CONFIG).read_bytes()
    (tmp_path / CONFIG).write_bytes(text[: len(text) * left_of_it // 100].rstrip(b"\n"))
    with pytest.raises(ConfigError, match=r"expected the whole config .* got [\d,]+ bytes of one"):
        earlier_run(config)


@pytest.mark.parametrize(
    ("task", "of_the_task"),
    [
        ("multilabel", []),
        ("regression", []),
        ("language", ["data=chat", "data.root=a.jsonl"]),
        ("preference", ["data=chat", "data.root=a.jsonl", "model=preference"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_job_that_was_fitted_to_the_task_of_its_data_is_the_same_job(tmp_path, task, of_the_task):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        words = ["method=bitfit", "name=bitfit", f"output_dir={tmp_path}", *of_the_task]
        config = compose("config", overrides=words)
    fitted = config.copy()
    fit_to_task(fitted, task)
    left(tmp_path, fitted, "completed")
    assert earlier_run(config).summary is not None
    config.lr = 7
    with pytest.raises(
        ConfigError, match=r"another config: lr was .*; optimizer.lr was .* 7\. Choose"
    ):
        earlier_run(config)


def test_half_a_checkpoint_is_not_gone_on_with(tmp_path):
    last = tmp_path / LAST
    left(tmp_path, job(tmp_path, resume=str(last)), "failed")
    last.parent.mkdir()
    torch.save({"global_step": 3}, last)
    assert earlier_run(job(tmp_path)).checkpoint == last
    last.write_bytes(last.read_bytes()[:-100])
    assert earlier_run(job(tmp_path)) == Earlier()


@pytest.mark.parametrize(
    "wrong", [{"objective": "much"}, {"objective": {"value": "1"}}, {"objective": [1]}, {}]
)
def test_a_result_of_another_type_is_no_result(wrong):
    assert Earlier(summary=wrong).objective is None
    assert Earlier(summary={"objective": {"value": 2}}).objective == 2.0


@pytest.mark.parametrize("wrong", [["x"], [{"value": "much"}], [{}]])
def test_nor_is_one_of_several_objectives(wrong):
    assert np.isnan(Earlier(summary={"objectives": wrong}).objective).all()
    assert Earlier(summary={"objectives": "many"}).objective is None


@pytest.mark.parametrize(
    ("before", "seconds", "line"),
    [
        (Earlier(), [], "job 2 of 4: seed=1"),
        (Earlier(), [20.0, 40.0], "job 2 of 4: seed=1 (about 1 min 30 s left)"),
        (Earlier(checkpoint=LAST), [], "job 2 of 4: seed=1 (from its last checkpoint)"),
        (Earlier(summary={}), [20.0], "job 2 of 4: seed=1: done already"),
    ],
    ids=["the first", "time left", "half", "done"],
)
def test_the_line_of_a_job(before, seconds, line):
    assert job_line(1, 4, ["seed=1"], before, seconds) == line


def test_a_path_with_quotes_is_one_value_for_hydra():
    from hydra.core.override_parser.overrides_parser import OverridesParser

    path = r"/it's here, {a}=\b"
    (override,) = OverridesParser.create().parse_overrides([f"resume={quoted(path)}"])
    assert override.value() == path


@pytest.mark.parametrize(
    ("file", "needs"),
    [
        ("hydra/launcher/joblib", "hydra-joblib-launcher"),
        ("hydra/launcher/submitit_local", "hydra-submitit-launcher"),
    ],
)
def test_a_plugin_that_is_not_installed_is_named_with_its_extra(file, needs):
    for options in ([f"{file}/../basic"], None):  # there is no other, where the group is a plugin's
        told = explain(MissingConfigException("no", missing_cfg_file=file, options=options))
        assert told is not None
        assert needs in told
        assert "pip install 'lightning-peft[sweep]'" in told


def test_a_number_that_cannot_be_printed_is_no_traceback():
    assert _changes({"seed": 1 << 99_999}, {"seed": 0}) == [
        "seed was a number too long to print, now 0"
    ]
