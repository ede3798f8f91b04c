"""A sweep: jobs by themselves, a table at the end, and a failed job that is told."""

import json
import os
import sys

import pytest

from lightning_peft.cli.sweeps.sweep import single_job_arguments

SHORT = (
    *("hydra.sweep.dir=sweep", "trainer.max_steps=2", "trainer.limit_test_batches=1"),
    *("data.steps_per_epoch=1", "data.batch_size=4"),
)
SWEEP = ("-m", "experiment=smoke", "hydra.sweep.dir=sweep", "test=true")


def test_a_sweep_runs_every_job_and_ends_in_a_table(train, tmp_path):
    argv = list(sys.argv)
    # what is typed takes the place of what the experiment sweeps over
    words = ("-m", "experiment=few_labels", "method=linear_probe,scratch", "seed=0", *SHORT)
    status, out, err = train(*words)
    assert status == 0, err
    runs = sorted(path.parent.name for path in (tmp_path / "sweep").glob("*/summary.json"))
    assert runs == ["0_linear_probe_seed0", "1_scratch_seed0"]
    trained = {}
    for name in runs:
        summary = json.loads((tmp_path / "sweep" / name / "summary.json").read_text())
        trained[summary["method"]["name"]] = summary["parameters"]["trained"]
        assert summary["baselines"]["nearest_neighbour"] > 0.3
    assert trained["linear_probe"] < trained["scratch"]
    assert [word in out for word in ("linear_probe", "scratch", "1-NN on pixels")] == [True] * 3
    assert "test accuracy" in out
    for name in ("comparison.csv", "comparison.json", "comparison.png", "report.html"):
        assert (tmp_path / "sweep" / name).stat().st_size > 0
    assert sys.argv == argv
    assert "LOCAL_RANK" not in os.environ


def test_a_failed_job_is_told_and_the_others_run(train, tmp_path):
    status, out, err = train(*SWEEP, "method=lora", "method.layers=7,1", "test=false")
    assert status == 1
    assert "failed: lora method.layers=7, seed 0:" in " ".join(out.split())
    assert "lora method.layers=1" in out
    assert err.splitlines()[-1].startswith("lightning-peft: ")
    statuses = [
        json.loads(path.read_text())["status"]
        for path in sorted((tmp_path / "sweep").glob("*/summary.json"))
    ]
    assert statuses == ["failed", "completed"]


class Part:
    """A stand-in for the hydra part of a job's config."""

    def __init__(self, **parts):
        self.__dict__.update(parts)


@pytest.mark.parametrize(
    ("args", "flags"),
    [
        (["-m", "method=lora,full"], []),
        (["-m", "--config-dir", "mine", "method=lora,full"], ["--config-dir", "mine"]),
        (["--multirun", "--config-dir=mine", "method=lora,full"], ["--config-dir", "mine"]),
    ],
    ids=["plain", "flag", "flag with ="],
)
def test_the_command_line_of_one_job(args, flags):
    overrides = Part(
        task=["method=full", "experiment=demo"],
        hydra=["hydra.mode=MULTIRUN", "hydra.sweep.dir=here", "hydra.verbose=true"],
    )
    config = Part(overrides=overrides, job=Part(num=1, id="1"))
    assert single_job_arguments(args, config) == [
        *flags,
        "method=full",
        "experiment=demo",
        "hydra.mode=RUN",
        "hydra.job.num=1",
        "hydra.job.id=1",
        "hydra.verbose=true",
    ]


@pytest.mark.slow
def test_ddp_trains_once_and_leaves_one_directory(tmp_path):
    import subprocess

    words = ["method=lora", "trainer=ddp", "trainer.accelerator=cpu", "experiment=smoke"]
    done = subprocess.run(
        [sys.executable, "-m", "lightning_peft.cli", *words, "hydra.run.dir=run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["steps"] == 4
