"""What a job knows of its trial, what it says to the study, and where its ranks meet."""

import os
import socket

import optuna
import pytest
from omegaconf import OmegaConf
from optuna.trial import TrialState

from lightning_peft.cli.config.objectives import costs_of, not_dominated
from lightning_peft.cli.runs.trial import ENVIRONMENT, Trial, trial_of
from lightning_peft.cli.sweeps import ports
from lightning_peft.cli.sweeps.record import Standing
from lightning_peft.cli.sweeps.search.study import PLACE, prepare_search, standing_of
from lightning_peft.cli.sweeps.sweep import isolated_job, job_environment, wants_own_process
from lightning_peft.evaluation.metric_names import KNOWN, TASKS

pytestmark = pytest.mark.usefixtures("undrawn")

MEDIAN = {"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 2, "n_warmup_steps": 1}


@pytest.fixture(params=["study.journal", "sqlite"])
def storage(tmp_path, request):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/study.db"
    return f"{tmp_path}/{request.param}"


def opened(storage):
    if "://" in storage:
        return storage
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(storage))


def part(**sweeper):
    sweeper = {"n_trials": 5, "direction": "maximize", **sweeper}
    return OmegaConf.create({"job": {"num": 2}, "sweeper": sweeper})


def test_a_trial_travels_in_the_environment(monkeypatch, storage):
    hydra = part(storage=storage, study_name="s", pruner=MEDIAN)
    trial = trial_of(hydra)
    assert trial == Trial(2, "s", storage, MEDIAN, ("maximize",))
    monkeypatch.setenv(ENVIRONMENT, trial.written())
    assert Trial.of_environment() == trial
    monkeypatch.delenv(ENVIRONMENT)
    assert Trial.of_environment() is None
    assert trial_of(part(pruner={"_target_": "optuna.pruners.NopPruner"})).pruner is None
    # a job may work in another directory
    there = OmegaConf.merge(part(storage="sqlite:///a/b.db"), {"runtime": {"cwd": "/there"}})
    assert trial_of(there).storage == "sqlite:////there/a/b.db"
    there = OmegaConf.merge(part(storage="a/b.journal"), {"runtime": {"cwd": "/there"}})
    assert trial_of(there).storage == "/there/a/b.journal"
    assert trial_of(part(storage="mysql://host/x")).storage == "mysql://host/x"
    assert trial_of(OmegaConf.create({"job": {"num": 2}, "sweeper": {"params": {}}})) is None


def test_a_trial_is_stopped_where_optuna_itself_would_stop_it(storage):
    study = optuna.create_study(study_name="s", storage=opened(storage), direction="maximize")
    for height in (0.5, 0.7):
        done = study.ask()
        for step in range(3):
            done.report(height, step)
        study.tell(done, height)
    for values in ((0.9, 0.9, 0.9), (0.1, 0.1, 0.9), (0.1, 0.65, 0.65)):
        number = study.ask().number
        found = [
            Trial(number, "s", storage, MEDIAN).report(value, step)
            for step, value in enumerate(values)
        ]
        pruner = optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=1)
        twin = optuna.load_study(study_name="s", storage=opened(storage), pruner=pruner)
        asked = optuna.trial.Trial(twin, twin.ask()._trial_id)
        expected = []
        for step, value in enumerate(values):
            asked.report(value, step)
            expected.append(asked.should_prune())
        assert found == expected
        assert twin.trials[number].intermediate_values == dict(enumerate(values))


def test_a_value_that_is_reported_again_is_the_first(storage):
    study = optuna.create_study(study_name="s", storage=opened(storage))
    number = study.ask().number
    trial = Trial(number, "s", storage, MEDIAN)
    trial.report(0.5, 0)
    trial.report(0.6, 0)  # a run that went on from its checkpoint; optuna would warn
    again = optuna.load_study(
        study_name="s", storage=opened(storage)
    )  # the first keeps what it knew
    assert again.trials[number].intermediate_values == {0: 0.5}


def sweep(directory, **sweeper):
    hydra = {
        "sweeper": sweeper,
        "sweep": {"dir": str(directory)},
        "overrides": {"task": [], "hydra": []},
    }
    return OmegaConf.create({"hydra": hydra})


def test_a_later_start_counts_what_is_done_and_finds_what_was_under_way(tmp_path, storage):
    study = optuna.create_study(study_name="s", storage=opened(storage), direction="maximize")
    for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL):
        value = 0.5 if state is TrialState.COMPLETE else None
        study.tell(study.ask(), value, state=state)
    mine, other, _bare = study.ask(), study.ask(), study.ask()
    mine.set_user_attr(PLACE, str(tmp_path.resolve()))
    other.set_user_attr(PLACE, "/elsewhere")  # another sweep that shares the study
    standing = standing_of(storage, "s", tmp_path)
    assert standing == Standing(trials=6, done=2, interrupted=(mine.number,))
    assert standing.jobs(n_trials=5) == 8
    config = sweep(tmp_path, n_trials=5, storage=storage, study_name="s", sampler={"seed": 7})
    assert prepare_search(config) == standing
    assert config.hydra.sweeper.sampler.seed == 7 + 6
    assert prepare_search(sweep(tmp_path, params={})) is None
    for name, where in (("new", storage), ("s", f"{tmp_path}/none.db"), ("s", None)):
        assert standing_of(where, name, tmp_path) == Standing()
    assert not (tmp_path / "none.db").exists()


def test_jobs_that_run_at_once_have_no_port_in_common(monkeypatch):
    for name in ports.ELSEWHERE:
        monkeypatch.delenv(name, raising=False)
    ranges = [set(ports.candidates(job)) for job in range(ports.AT_ONCE)]
    assert len(set.union(*ranges)) == sum(map(len, ranges))
    port = ports.free_port(3)
    assert port in ports.candidates(3)
    with socket.create_server(("", port)):
        monkeypatch.setattr(ports, "candidates", lambda job: range(port, port + 1))
        assert ports.free_port(3) is None, "somebody listens there"
    assert ports.free_port(3) == port
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert ports.free_port(3) is None, "the scheduler's to choose, the same on every machine"


def test_a_job_leaves_neither_its_trial_nor_its_port_to_the_next(monkeypatch, tmp_path):
    from hydra.core.hydra_config import HydraConfig

    for name in ports.ELSEWHERE:
        monkeypatch.delenv(name, raising=False)
    hydra = part(storage=None, study_name="s")
    found = job_environment(hydra)
    assert Trial(2, "s", directions=("maximize",)).written() == found[ENVIRONMENT]
    assert int(found["MASTER_PORT"]) in ports.candidates(2)
    more = {
        "mode": "MULTIRUN",
        "run": {"dir": "x"},
        "runtime": {"output_dir": str(tmp_path)},
        "overrides": {"task": [], "hydra": []},
    }
    hydra = OmegaConf.merge(hydra, more, {"job": {"id": "2"}})
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: hydra)
    monkeypatch.setattr("lightning_peft.cli.sweeps.sweep.in_sweep", lambda: True)
    with isolated_job(["-m"]):
        assert Trial.of_environment().number == 2
        assert "MASTER_PORT" in os.environ
    assert Trial.of_environment() is None
    assert "MASTER_PORT" not in os.environ


@pytest.mark.parametrize(
    ("trainer", "environment", "own"),
    [
        ({"devices": 1}, {}, False),
        ({"devices": "1", "num_nodes": 1}, {}, False),
        ({"devices": 2}, {}, True),
        ({"devices": "auto"}, {}, True),
        ({"devices": [0, 1]}, {}, True),
        ({"devices": 1, "num_nodes": 2}, {}, True),
        ({"devices": 2}, {"SLURM_NTASKS": "2"}, False),
        ({"devices": 2}, {"SLURM_NTASKS": "1"}, True),
        ({"devices": 2}, {"LOCAL_RANK": "0"}, False),
    ],
)
def test_a_job_of_several_ranks_leaves_the_worker_of_a_launcher(
    monkeypatch, trainer, environment, own
):
    for name in ("SLURM_NTASKS", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    cfg = OmegaConf.create({"trainer": trainer})
    assert wants_own_process(cfg, None) is own
    assert not wants_own_process(cfg, os.getpid()), "the process of the sweep itself"


def test_the_pareto_set_is_that_of_optuna():
    import random

    draw = random.Random(0)
    study = optuna.create_study(directions=["maximize", "minimize", "maximize"])
    values = [[draw.randrange(5) / 4 for _ in range(3)] for _ in range(40)]
    for own in values:
        study.tell(study.ask(), own)
    found = not_dominated(values, ["maximize", "minimize", "maximize"])
    assert found == sorted(trial.number for trial in study.best_trials)


def test_the_known_metrics_are_those_that_the_ready_modules_measure():
    from lightning_peft.evaluation.metrics import metric_set
    from lightning_peft.lightning.modules.seq2seq import ROUGES

    sizes = {"num_classes": 3, "num_labels": 3, "num_outputs": 1}
    names = {name for task in TASKS for name in metric_set(task, **sizes)}
    tagged = {"precision", "recall"}  # seqeval's, held against it in test_text_tasks.py
    assert names | tagged | {*ROUGES, "loss", "margin", "perplexity"} == set(KNOWN)


def test_costs_that_were_not_measured_are_left_out():
    summary = {
        "parameters": {"trained": 5},
        "seconds": {"total": 2.0, "step": None},
        "efficiency": {"peak_process_rss_bytes": 7, "peak_cuda_bytes": 9},
    }
    assert costs_of(summary) == {
        "trained_parameters": 5,
        "total_seconds": 2.0,
        "memory_bytes": 9,
    }
