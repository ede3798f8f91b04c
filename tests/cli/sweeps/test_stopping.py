"""What a signal leaves of a run and of a sweep: the status, the state, and how to continue."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.conf import HydraConf
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict

from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.jobs.ranks import ending_ranks
from lightning_peft.cli.runs.occupied import occupy_run
from lightning_peft.cli.runs.parent import ENVIRONMENT, exists, here
from lightning_peft.cli.runs.summary import read_summary
from lightning_peft.cli.sweeps.earlier import identity
from lightning_peft.cli.sweeps.fresh import _ended
from lightning_peft.cli.sweeps.resuming import continuing
from lightning_peft.cli.sweeps.stopping import is_stopping, jobs_under
from lightning_peft.lightning.signals import LISTENER, SIGNALS

RUN = ("experiment=smoke", "method=linear_probe", "hydra.run.dir=run", "trainer.max_steps=6")
SWEEP = (
    "-m",
    *("experiment=smoke", "method=linear_probe", "seed=0,1", "test=false"),
    "hydra.sweep.dir=sweep",
)


@pytest.fixture
def signal_at(monkeypatch):
    """Send a signal to this very process before a step of training, or where a method is called."""
    from lightning_peft.cli.jobs.progress import StepProgress

    def at(number, step=None, where=None, label=""):
        owner, name = (StepProgress, "on_train_batch_start") if where is None else where
        real = getattr(owner, name)
        sent = []

        def send(*args, **kwargs):
            fits = step is None or (args[1].global_step == step and args[0].label.endswith(label))
            if not sent and fits:
                sent.append(number)
                os.kill(os.getpid(), number)
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, send)

    before = [signal.getsignal(number) for number in SIGNALS]
    yield at
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert (LISTENER.number, LISTENER.commanded, LISTENER.waits) == (None, False, False)
    assert ENVIRONMENT not in os.environ


def told(err):
    """Return the words of the one line that says how to continue."""
    (line,) = [line for line in err.splitlines() if line.startswith("lightning-peft: stopped by")]
    return shlex.split(line.partition(": lightning-peft ")[2])


def test_a_run_is_continued_by_the_line_it_ends_with(train, command, tmp_path, signal_at):
    words = (*RUN, "data.steps_per_epoch=3", "trainer.max_steps=6")
    status, _, err = train(*words, "hydra.run.dir=whole")
    assert status == 0, err
    whole = read_summary(tmp_path / "whole")
    signal_at(signal.SIGTERM, step=4)
    status, _, err = train(*words)
    assert status == 143
    assert read_summary(tmp_path / "run")["status"] == "interrupted"
    then = told(err)
    assert then[-2:] == [
        f"resume={tmp_path}/run/checkpoints/last.ckpt",
        f"hydra.run.dir={tmp_path}/run",
    ]
    status, _, err = command(*then)
    assert status == 0, err
    summary = read_summary(tmp_path / "run")
    assert (summary["status"], summary["steps"]) == ("completed", 6)
    assert summary["metrics"] == whole["metrics"]


def test_a_sweep_is_continued_by_the_line_it_ends_with(
    train, command, tmp_path, signal_at, undrawn
):
    signal_at(signal.SIGUSR1, step=1, label="seed 1")
    status, _, err = train(*SWEEP)
    assert status == 128 + signal.SIGUSR1
    states = [read_summary(path)["status"] for path in sorted((tmp_path / "sweep").glob("*_*"))]
    assert states == ["completed", "interrupted"]
    then = told(err)
    assert then == ["continue", "sweep"]
    status, _, err = command(*then)
    assert status == 0, err
    assert "done already" in err


@pytest.mark.parametrize(
    ("where", "status", "said"),
    [
        (
            "lightning_peft.cli.jobs.train.check_targets",
            None,
            "to resume the run: lightning-peft model=timm",
        ),
        ("lightning_peft.cli.jobs.outcome.save_adapters", "interrupted", "last.ckpt"),
        ("lightning_peft.cli.jobs.outcome.result_table", "completed", "the run is complete: "),
    ],
    ids=["before it is built", "behind the test", "behind its end"],
)
def test_outside_of_the_training_it_ends_where_it_is(
    train, tmp_path, signal_at, where, status, said
):
    import importlib

    module, _, name = where.rpartition(".")
    signal_at(signal.SIGHUP, where=(importlib.import_module(module), name))
    code, _, err = train(*RUN)
    assert code == 129, err
    assert read_summary(tmp_path / "run").get("status") == status
    assert err.count("lightning-peft: stopped by SIGHUP; ") == 1
    assert said in err
    assert "Traceback" not in err


def test_the_words_that_continue_keep_what_was_typed_and_name_the_checkpoint(tmp_path):
    words = ["method=lora", "resume=old.ckpt", "+hydra.run.dir=other", "data.root=/a b"]
    run = tmp_path / "it's"
    assert shlex.split(continuing(words, run, run)) == [
        *("lightning-peft", "method=lora", "resume=old.ckpt", "data.root=/a b"),
        f"hydra.run.dir='{tmp_path}/it\\'s'",
    ]
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    last.touch()
    assert shlex.split(continuing(words, tmp_path / "run", tmp_path / "run"))[-2:] == [
        f"resume={last}",
        f"hydra.run.dir={tmp_path}/run",
    ]


def test_another_grace_period_does_not_make_another_job():
    """Nor does a job that an earlier release recorded, without one."""
    new = {"seed": 1, "grace": 5, "callbacks": {"signals": {"_target_": "x", "grace": 5}, "a": 1}}
    old = {"seed": 1, "callbacks": {"a": 1}}
    assert identity(OmegaConf.create(new)) == identity(OmegaConf.create(old))
    assert identity(OmegaConf.create({**old, "graces": 5})) != identity(OmegaConf.create(old))


def test_the_jobs_of_a_sweep_are_found_and_no_further_one_begins(tmp_path, monkeypatch):
    job = tmp_path / "0_lora"
    job.mkdir()
    code = (
        "import sys; from pathlib import Path; from lightning_peft.cli.runs.occupied import occupy;"
        "occupy(Path(sys.argv[1]), 'x'); print('here', flush=True); sys.stdin.read()"
    )
    (tmp_path / ".in_use").write_text(json.dumps({"id": os.getpid()}))
    stale = tmp_path / "1_lora"
    stale.mkdir()
    (stale / ".in_use").write_text(json.dumps({"id": 1, "host": here().partition(":")[0]}))
    with subprocess.Popen(
        [sys.executable, "-c", code, str(job)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"here\n"
        assert list(jobs_under(tmp_path)) == [process.pid]
        assert not is_stopping(tmp_path)
        monkeypatch.setattr(LISTENER, "number", signal.SIGTERM)
        jobs_under(tmp_path)
        monkeypatch.setattr(LISTENER, "number", None)
        assert is_stopping(tmp_path)
        process.stdin.close()


def test_the_ranks_of_a_job_that_fails_are_ended(monkeypatch):
    monkeypatch.setattr("lightning_peft.cli.jobs.ranks.PATIENCE", 0.0)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    processes = [process]
    launcher = SimpleNamespace(procs=processes)
    trainer = SimpleNamespace(strategy=SimpleNamespace(launcher=launcher))
    with pytest.raises(RuntimeError, match="no connection"), ending_ranks(trainer):
        raise RuntimeError("no connection")
    assert process.returncode == -signal.SIGKILL
    assert processes == []  # or Lightning's observer kills the whole sweep


def test_a_process_ends_with_the_one_that_started_it(tmp_path):
    """However that one ended, and although a run in it waits in a library."""
    child = (
        "import time; from lightning_peft.cli.runs.parent import watch_parent; "
        "watch_parent(['hydra.job.name=train_ddp_process_1']); print('on', flush=True); "
        "time.sleep(600)"
    )
    parent = (
        "import os, subprocess, sys; from lightning_peft.cli.runs.parent import under_a_parent\n"
        "with under_a_parent([]):\n"
        f"    process = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "    print(process.pid, flush=True)\n"
        "    process.wait()\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        number = int(process.stdout.readline())
        assert process.stdout.readline() == b"on\n"
        assert exists(number)
        process.kill()
        process.wait()
        for _ in range(600):
            if not exists(number):
                return
            time.sleep(0.05)
    pytest.fail("it is still there after 30 s")


@pytest.mark.parametrize(
    ("mode", "callbacks", "key"),
    [
        (RunMode.RUN, {}, "hydra.run.dir"),
        (RunMode.MULTIRUN, {}, "hydra.sweep.dir"),
        (RunMode.RUN, {"lightning_peft_result": {"_target_": "x"}}, "hydra.sweep.dir"),
    ],
    ids=["run", "sweep", "job in a process of its own"],
)
def test_a_refusal_names_the_key_that_the_user_can_set(tmp_path, mode, callbacks, key):
    """The launcher `fresh` sets hydra.run.dir itself, for each job."""
    (tmp_path / "file").touch()
    config = OmegaConf.create({"hydra": OmegaConf.structured(HydraConf)})
    with open_dict(config):
        config.hydra.mode = mode
        config.hydra.callbacks = callbacks
        config.hydra.run.dir = str(tmp_path / "file" / "a")
    with pytest.raises(ConfigError, match=f"Choose another {key}"):
        occupy_run(config)


@pytest.mark.parametrize(
    ("status", "told"),
    [(143, "was stopped by SIGTERM"), (-9, "was killed by SIGKILL"), (1, "ended with exit stat")],
)
def test_the_end_of_a_job_is_told_by_its_status(status, told):
    assert _ended(status).startswith(told)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["run", "accumulated", "basic", "fresh", "joblib", "two ranks"])
def test_stopped_in_a_process_of_its_own_it_goes_on_to_the_same_figures(process, kind):
    script = str(Path(__file__).parents[3] / "benchmarks" / "stop_runs.py")
    done = process([script, "--stops", "2", "--kinds", kind])
    assert done.returncode == 0, done.stderr
