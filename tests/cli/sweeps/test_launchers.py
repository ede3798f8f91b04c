"""Jobs that run at once, in the workers of joblib and submitit: of one rank and of two."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from optuna.trial import TrialState

from tests.cli.conftest import ROOT, TINY, study_in

pytestmark = pytest.mark.usefixtures("undrawn")

SHORT = (
    *("hydra.sweep.dir=sweep", "test=false", "trainer.limit_val_batches=1"),
    *("data.labels_per_class=2", "data.batch_size=8", "data.steps_per_epoch=2"),
)
ONE = (*SHORT, "trainer=cpu", "trainer.max_steps=2")
TWO = (*SHORT, "trainer=ddp", "trainer.accelerator=cpu", "trainer.max_steps=6")
AT_ONCE = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
SEARCH = ("experiment=optuna", "hydra.sweeper.params.method=bitfit")


def summaries(directory):
    return [json.loads(path.read_text()) for path in sorted(directory.glob("sweep/*/summary.json"))]


def trials(directory):
    return study_in(directory / "sweep").trials


@pytest.mark.slow
def test_trials_at_once_are_told_to_one_study(train, tmp_path):
    two = ("hydra.sweeper.n_jobs=2", "hydra.sweeper.n_trials=2")
    # every trial asks, and none is stopped: the lines of workers are not heard here
    pruner = ("hydra/sweeper/pruner=median",)
    status, out, err = train("-m", *SEARCH, *ONE, *AT_ONCE, *two, *pruner)
    assert status == 0, err
    found = trials(tmp_path)
    assert [trial.state for trial in found] == [TrialState.COMPLETE] * 2
    assert [trial.value for trial in found] == [
        s["objective"]["value"] for s in summaries(tmp_path)
    ]
    assert all(list(trial.intermediate_values) == [0] for trial in found)
    assert "bitfit lr=" in out


@pytest.mark.slow
def test_a_job_of_submitit_is_a_job_like_another(train, tmp_path):
    launcher = ("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10")
    status, out, err = train("-m", "method=bitfit", *ONE, *launcher)
    assert status == 0, err
    assert [s["status"] for s in summaries(tmp_path)] == ["completed"]
    assert "bitfit" in out


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_jobs_of_two_ranks_at_once_keep_to_themselves(process, tmp_path, launcher):
    words = AT_ONCE if launcher == "joblib" else (f"hydra/launcher={launcher}",)
    sweep = ["-m", "lightning_peft.cli", "-m", *TINY, "method=bitfit", "seed=0,1", *TWO]
    done = process([*sweep, *words])
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["sweep"]  # no second sweep elsewhere
    directories = sorted(p.parent.name for p in (tmp_path / "sweep").glob("*/config.yaml"))
    assert directories == ["0_bitfit_seed0", "1_bitfit_seed1"]
    found = summaries(tmp_path)
    assert [(s["status"], s["seed"], s["ranks"], s["steps"]) for s in found] == [
        ("completed", 0, 2, 6),
        ("completed", 1, 2, 6),
    ]
    # as they come out one after the other
    alone = process([*sweep, "hydra.sweep.dir=alone"])
    assert alone.returncode == 0, alone.stderr
    for one, other in zip(found, sorted((tmp_path / "alone").glob("*/summary.json")), strict=True):
        # a worker of joblib may give its jobs another number of threads
        assert one["metrics"] == pytest.approx(json.loads(other.read_text())["metrics"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher", [(), ("hydra/launcher=fresh",), AT_ONCE], ids=["basic", "fresh", "joblib"]
)
def test_ranks_of_a_pruned_trial_stop_together(process, tmp_path, launcher):
    words = (
        *("objective=val/loss", "hydra/sweeper/sampler=grid", *launcher),
        *("hydra.sweeper.params.lr='choice(1e-3,1e2)'", "hydra.sweeper.n_trials=2"),
        f"hydra.sweeper.n_jobs={2 if launcher is AT_ONCE else 1}",
        "hydra.sweeper.pruner._target_=optuna.pruners.ThresholdPruner",
        "+hydra.sweeper.pruner.upper=10",
    )
    done = process(["-m", "lightning_peft.cli", "-m", *TINY, *SEARCH, *TWO, *words])
    assert done.returncode == 0, done.stderr
    found = {s["status"]: (s["ranks"], s["steps"]) for s in summaries(tmp_path)}
    assert found == {"completed": (2, 6), "pruned": (2, 2)}
    states = {trial.params["lr"]: trial.state for trial in trials(tmp_path)}
    assert states == {1e-3: TrialState.COMPLETE, 1e2: TrialState.PRUNED}


@pytest.mark.slow
@pytest.mark.parametrize("storage", [(), ("hydra.sweeper.storage=null",)], ids=["file", "memory"])
def test_a_search_that_was_killed_goes_on_to_its_number_of_trials(process, tmp_path, storage):
    words = [sys.executable, "-m", "lightning_peft.cli", "-m", *TINY, *SEARCH, *ONE, *storage]
    words += ["hydra.sweeper.n_trials=3", "trainer.max_steps=200"]
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    killed = subprocess.Popen(
        words, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, start_new_session=True
    )
    while killed.poll() is None and not list(tmp_path.glob("sweep/1_*/checkpoints/last.ckpt")):
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL, "it was to be in the middle of the second trial"
    before = json.loads(next(tmp_path.glob("sweep/0_*/summary.json")).read_text())
    if not storage:
        assert [t.state for t in trials(tmp_path)] == [TrialState.COMPLETE, TrialState.RUNNING]

    done = process(words[1:])
    assert done.returncode == 0, done.stderr
    found = summaries(tmp_path)
    assert [(s["status"], s["steps"]) for s in found] == [("completed", 200)] * 3
    assert found[0] == before
    assert "job 2 of 3: " in done.stderr
    assert "(from its last checkpoint" in done.stderr
    assert len(json.loads((tmp_path / "sweep" / "comparison.json").read_text())["rows"]) == 3
    if not storage:
        assert [t.state for t in trials(tmp_path)] == [TrialState.COMPLETE] * 3
