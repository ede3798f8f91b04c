"""What is wrong with a search is found before its first job, all of it at once."""

import sys

import pytest
from omegaconf import OmegaConf

from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.config.objectives import chosen_by
from lightning_peft.cli.jobs.trial_run import check_direction, told
from lightning_peft.cli.runs.trial import Trial
from lightning_peft.cli.sweeps.launcher_check import check_launcher
from lightning_peft.cli.sweeps.search.check import check_search
from lightning_peft.errors import MissingExtraError

SEARCH = {"n_trials": 3, "direction": None, "params": {"lr": "interval(1e-3,1e-2)"}}
MEDIAN = {"_target_": "optuna.pruners.MedianPruner"}
IN_A_FILE = {"storage": "sqlite:///study.db", "study_name": "search"}


def config(objective=None, *, model="lightning_peft.ImageClassifier", mode="max", **sweeper):
    return OmegaConf.create(
        {
            "objective": objective,
            "model": {"_target_": model},
            "callbacks": {
                "off": None,
                "best": {"monitor": "val/accuracy", "mode": mode},
                "efficiency": {"_target_": "lightning_peft.EfficiencyMonitor"},
            },
            "hydra": {"sweeper": {**SEARCH, **sweeper}, "overrides": {"task": []}},
        }
    )


@pytest.mark.parametrize(
    ("objective", "mode", "direction"),
    [
        (None, "max", "maximize"),
        (None, "min", "minimize"),
        ("val/f1", "max", "maximize"),
        ("val/loss", "max", "minimize"),
        ("step_seconds", "max", "minimize"),
        (["val/accuracy", "trained_parameters"], "max", ["maximize", "minimize"]),
    ],
)
def test_the_direction_is_what_is_better_of_the_objective(objective, mode, direction):
    found = config(objective, mode=mode)
    check_search(found)
    assert found.hydra.sweeper.direction == direction


def test_what_is_typed_stays_and_a_plain_sweep_is_left_alone():
    found = config("val/loss", direction="maximize")
    check_search(found)
    assert found.hydra.sweeper.direction == "maximize"
    plain = OmegaConf.create({"objective": None, "hydra": {"sweeper": {"params": {}}}})
    before = plain.copy()
    check_search(plain)
    assert plain == before


@pytest.mark.parametrize(
    ("made", "match"),
    [
        (config("val/acuracy"), "got 'val/acuracy'. Did you mean 'val/accuracy'"),
        (config("trained"), "expected a metric or a cost of a run, got 'trained'"),
        (config(["val/f1", "val/f1"]), "expected each name once"),
        (config("test/f1"), r"'test/f1' is a metric of the test set.*allow_test_objective=true"),
        (config(direction="up"), "expected maximize or minimize, got 'up'"),
        (
            config(["val/f1", "checkpoint_bytes"], direction=["maximize"]),
            r"expected 2, one for each objective, got 1.*\[maximize, minimize\]",
        ),
        (
            config(["val/f1", "checkpoint_bytes"], pruner=MEDIAN, **IN_A_FILE),
            "Optuna prunes by one objective, got 2: val/f1, checkpoint_bytes",
        ),
        (
            config("trained_parameters", pruner=MEDIAN, **IN_A_FILE),
            "expected an objective that each validation measures.*got 'trained_parameters'",
        ),
        (config(pruner=MEDIAN, storage=None), "a pruner needs hydra.sweeper.storage"),
        (
            config(["val/f1", "val/loss"], sampler={"_target_": "optuna.samplers.CmaEsSampler"}),
            "CmaEsSampler takes only one objective, got 2",
        ),
        (config(n_trials=0), r"n_trials: expected a whole number of at least 1, got 0\."),
        (config(n_trials=None), "n_trials: expected a whole number of at least 1, got null"),
        (config(n_jobs="abc"), "n_jobs: expected a whole number of at least 1, got 'abc'"),
        (config(n_jobs=-1), "n_jobs: expected a whole number of at least 1, got -1"),
        (config(max_failure_rate="abc"), "expected a number from 0 to 1, got 'abc'"),
        (config(max_failure_rate=1.5), "max_failure_rate: expected a number from 0 to 1, got 1.5"),
        (config(params=3), "hydra.sweeper.params: expected a mapping .* got 3"),
        (config(params={}), "expected a search space, got none, so every trial would be the same"),
        (
            config(params={"lr": 0.1}),
            "expected a search space, got none, so every trial would be the same",
        ),
        (config(pruner="median"), "got 'median'.* with a slash: hydra/sweeper/pruner=median"),
        (config(sampler="grid"), "got 'grid'.* with a slash: hydra/sweeper/sampler=grid"),
        (
            config(sampler={"_target_": "optuna.samplers.GridSampler", "_partial_": True}),
            r"the grid tries every value, but lr is an interval.*lr=choice\(",
        ),
        (
            config(sampler={"_target_": "optuna.samplers.TPESampler", "seed": "abc"}),
            "hydra.sweeper.sampler.seed: expected a whole number or null, got 'abc'",
        ),
        (
            config(pruner={"_target_": "optuna.pruners.MedianPrunr"}, **IN_A_FILE),
            "hydra.sweeper.pruner._target_: .* has no 'MedianPrunr'. Did you mean 'MedianPruner'",
        ),
        (
            config(search_space={"lr": {"type": "float"}}),
            r"search_space: use hydra.sweeper.params instead.*interval\(0,1\)",
        ),
        (config(params={"lr": "interval(5,1)"}), r"lr=interval\(5,1\) cannot be searched .*low"),
        (config(params={"lr": "range(5,1)"}), r"lr=range\(5,1\) cannot .* \(it has no values\)"),
        (config(params={"lr": "range(1,5,step=0)"}), "cannot be searched .*must not be zero"),
        (config(params={"method": "glob(*)"}), r"\(it does not list its values\). Expected such"),
        (config(3), "objective: expected a name, a list of names or null, got 3"),
        (
            OmegaConf.create({"hydra": {"sweeper": None}}),
            "hydra.sweeper: expected a mapping, got None.*hydra/sweeper=search",
        ),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_a_search_is_refused(made, match):
    with pytest.raises(ConfigError, match=match):
        check_search(made)


def test_a_search_without_optuna_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"`optuna` is needed.*lightning-peft\[sweep\]"):
        check_search(config())


def test_the_checkpoint_is_chosen_by_what_keeps_it_and_not_by_what_stops_the_run():
    stop = {"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "val/loss"}
    best = {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "monitor": "val/f1"}
    callbacks = {"off": None, "stop": {**stop, "mode": "min"}, "best": best}
    assert chosen_by({"callbacks": callbacks}) == ("val/f1", "maximize")
    assert chosen_by({"callbacks": {"stop": callbacks["stop"]}}) == ("val/loss", "minimize")
    assert chosen_by({"callbacks": None}) == (None, "maximize")


def test_a_cost_that_nothing_measures_is_no_objective():
    made = config(["val/accuracy", "memory_bytes", "step_seconds"])
    made.callbacks.efficiency = None
    with pytest.raises(ConfigError, match="memory_bytes and step_seconds are measured by .*Eff"):
        check_search(made)
    made.callbacks.own = {"_target_": "mine.Monitor"}  # it may be one
    check_search(made)


def test_the_test_set_never_prunes_even_where_it_may_be_searched_on():
    made = config("test/f1", pruner=MEDIAN, **IN_A_FILE)
    made.allow_test_objective = True
    with pytest.raises(ConfigError, match="never one of the test set.*got 'test/f1'"):
        check_search(made)


def test_a_module_of_the_users_own_may_log_what_it_likes():
    check_search(config("val/my_metric", model="mine.Module"))


def test_several_objectives_are_for_a_search():
    plain = OmegaConf.create({"objective": ["val/f1", "val/loss"], "hydra": {"sweeper": {}}})
    with pytest.raises(ConfigError, match="expected one name, got 2: several are for a search"):
        check_search(plain)


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigError) as refused:
        check_search(config(["val/x", "test/f1"], direction=["up"], pruner=MEDIAN, storage=None))
    assert len(str(refused.value).splitlines()) == 6


def test_more_is_not_searched_of_an_error_that_nobody_has_named():
    numbers = OmegaConf.create(
        {"objective": None, "callbacks": {"best": {"monitor": "val/rmse", "mode": "min"}}}
    )
    match = (
        "would maximize val/rmse, but it should minimize it. Set hydra.sweeper.direction=minimize"
    )
    with pytest.raises(ConfigError, match=match):
        check_direction(numbers, Trial(0, directions=("maximize",)))
    check_direction(numbers, Trial(0, directions=("minimize",)))
    check_direction(numbers, None)
    named = OmegaConf.merge(numbers, {"objective": "val/r2"})
    check_direction(named, Trial(0, directions=("maximize",)))


def test_local_tasks_of_submitit_are_refused():
    target = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher"
    launcher = {"_target_": target, "tasks_per_node": 2}
    with pytest.raises(ConfigError, match="each task would train the whole job"):
        check_launcher(OmegaConf.create({"hydra": {"launcher": launcher}}))
    for fine in ({**launcher, "tasks_per_node": 1}, {"_target_": "x.SlurmLauncher"}, None):
        check_launcher(OmegaConf.create({"hydra": {"launcher": fine}}))


def test_what_a_sweeper_is_told():
    one = {"objective": {"name": "val/f1", "value": 0.5}, "metrics": {"val/f1": 0.5}}
    assert told(one) == 0.5
    nothing = {"objective": {"name": None, "value": None}, "metrics": {}}
    assert told(nothing) is None
    several = [{"name": "val/f1", "value": 0.5}, {"name": "step_seconds", "value": None}]
    with pytest.raises(ConfigError, match="got 'step_seconds'"):
        told({**one, "objectives": several})
    several[1]["value"] = 2.0
    assert told({**one, "objectives": several}) == [0.5, 2.0]
