"""A search that is killed, wherever it is: it goes on to the trials that it would have had.

Every place at which something is written is tried. The processes are forked from one that has
imported everything, and their jobs take no time.
"""

import json
import os
import signal
import traceback
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from optuna.trial import TrialState

from lightning_peft.cli.sweeps.search.study import prepare_search
from lightning_peft.cli.sweeps.search.sweeper import Search
from tests.cli.conftest import study_in

TRIALS = 2


class Launcher:
    """Run jobs that leave a line each, and are not run again when they are done."""

    def __init__(self, place, killed_in):
        self.place, self.killed_in = place, killed_in

    def launch(self, overrides, initial_job_idx):
        return [self.job(*pair) for pair in enumerate(overrides, start=initial_job_idx)]

    def job(self, number, words):
        done = self.place / f"{number}.done"
        if not done.exists():
            with open(self.place / "jobs.txt", "a") as file:
                file.write(json.dumps([number, *words]) + "\n")
            if number == self.killed_in:
                os.kill(os.getpid(), signal.SIGKILL)
            done.touch()
        (rate,) = words
        return SimpleNamespace(return_value=float(rate.partition("=")[2]), hydra_cfg=None)


def search(place, killed_in=None):
    """Run a search, as the command does when it is typed."""
    sweeper = {
        "n_trials": TRIALS,
        "direction": "maximize",
        "storage": f"{place}/study.journal",
        "study_name": "search",
        "params": {"lr": "interval(0,1)"},
        "sampler": {"_target_": "optuna.samplers.RandomSampler", "seed": 0},
    }
    overrides = {"task": [], "hydra": []}
    hydra = {"sweeper": sweeper, "sweep": {"dir": str(place)}, "overrides": overrides}
    config = OmegaConf.create({"hydra": hydra})
    prepare_search(config)
    made = Search(**instantiate(config.hydra.sweeper))
    made.config, made.place = config, place
    composes = SimpleNamespace(load_sweep_config=lambda config, overrides: config)
    made.hydra_context = SimpleNamespace(config_loader=composes)
    made.launcher = Launcher(place, killed_in)
    made.sweep([])


def killed_at(write, half, journal):
    """Kill this process at one of its writes: when the line is there, or half of it."""
    real, seen = os.fsync, []

    def fsync(number):
        real(number)
        if os.fstat(number).st_ino == journal.stat().st_ino:
            seen.append(number)
        if len(seen) == write:
            if half:
                content = journal.read_bytes()
                line = len(content.splitlines(keepends=True)[-1])
                os.truncate(journal, len(content) - line // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = fsync


def forked(function, *arguments):
    """Call a function in a process of its own, and return how that ended."""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            function(*arguments)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def broken(place, write, half, killed_in):
    if write is not None:
        killed_at(write, half, place / "study.journal")
    search(place, killed_in)


def jobs_in(place):
    path = place / "jobs.txt"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def finished(study):
    done = [trial for trial in study.trials if trial.state is TrialState.COMPLETE]
    return [(trial.number, trial.params, trial.value, trial.datetime_complete) for trial in done]


def check(place, write=None, half=False, killed_in=None):
    """Kill a search and go on with it; whether there was anything to kill."""
    place.mkdir()
    ended = forked(broken, place, write, half, killed_in)
    if ended == 0:
        return False
    assert ended == -signal.SIGKILL
    jobs = jobs_in(place)
    try:
        before = finished(study_in(place))
    except KeyError:  # killed before there was a study
        before = []
    assert forked(search, place) == 0, place

    study = study_in(place)
    after = finished(study)
    assert after[: len(before)] == before, "what was done is kept as it was"
    assert len(after) == TRIALS
    states = [trial.state for trial in study.trials]
    assert TrialState.RUNNING not in states
    # a trial that was killed while it was proposed has nothing that could be run again
    assert states.count(TrialState.FAIL) <= (write is not None)
    assert len({trial["lr"] for _, trial, _, _ in after}) == TRIALS
    assert all(value == trial["lr"] for _, trial, value, _ in after)
    ran = jobs_in(place)
    again = [job for job in ran if job[0] == killed_in]
    assert len(again) == (0 if killed_in is None else 2), "once before it was killed, once after"
    assert len({json.dumps(job) for job in again}) <= 1, "with the same parameters"
    others = [job for job in ran if job[0] != killed_in]
    assert sorted(job[0] for job in others) == [n for n, *_ in after if n != killed_in], "once each"
    assert ran[: len(jobs)] == jobs
    assert forked(search, place) == 0
    assert jobs_in(place) == ran, "it is over"
    return True


def kill_everywhere(directory):
    """Kill searches at each of their writes and in each of their jobs; print how many."""
    count = 0
    for half in (False, True):
        write = 1
        while check(directory / f"{write}{half}", write, half):
            count, write = count + 1, write + 1
    count += sum(check(directory / f"in{job}", killed_in=job) for job in range(TRIALS))
    print(count)


@pytest.mark.slow
def test_a_search_goes_on_wherever_it_was_killed(process, tmp_path):
    module = f"tests.cli.sweeps.search.{Path(__file__).stem}"
    code = f"import {module} as killed; killed.kill_everywhere(killed.Path.cwd())"
    done = process(["-c", code])
    assert done.returncode == 0, done.stderr
    # a study and what it is of; a trial, its parameter, its place and its end; and in its job
    assert int(done.stdout) == 2 * (2 + 4 * TRIALS) + TRIALS
