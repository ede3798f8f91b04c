"""What becomes of the trials of a search, with a launcher that runs nothing."""

import sys
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from optuna.trial import TrialState

from lightning_peft.cli.config.errors import ConfigError, explain
from lightning_peft.cli.config.paths import conf_dir
from lightning_peft.cli.runs.trial import trial_of
from lightning_peft.cli.sweeps.record import count_jobs
from lightning_peft.cli.sweeps.search.check import check_search
from lightning_peft.cli.sweeps.search.study import prepare_search, standing_of
from lightning_peft.cli.sweeps.state import STATE
from tests.cli.conftest import study_in

MIXED = ("method=choice(linear_probe,lora)", "method.rank=choice(2,4)", "hydra.sweeper.n_trials=4")
BITFIT = ("method=bitfit", "lr=choice(0.1,0.2)", "hydra.sweeper.n_trials=2")


class Launcher:
    """Keeps what it was given, and ends every job well, or raises."""

    def __init__(self, error=None, value=0.5):
        self.error, self.value, self.jobs = error, value, []

    def launch(self, overrides, initial_job_idx):
        if self.error is not None:
            raise self.error
        self.jobs += overrides
        return [SimpleNamespace(return_value=self.value, hydra_cfg=None) for _ in overrides]


@pytest.fixture
def search(tmp_path, monkeypatch):
    """Run a search in ``tmp_path / "search"``: how many jobs it has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(STATE, "failed", 0)

    def run(launcher, *words):
        typed = ["hydra/sweeper=search", "hydra/sweeper/sampler=random", "hydra.sweep.dir=search"]
        loader = GlobalHydra.instance().config_loader()
        typed += [*words]
        if not any("sampler.seed" in word or "sampler=grid" in word for word in words):
            typed.append("hydra.sweeper.sampler.seed=0")
        config = loader.load_configuration("config", typed, run_mode=RunMode.MULTIRUN)
        launcher.keys = set(config.hydra.sweeper.sampler)
        check_search(config)
        jobs = count_jobs(config, prepare_search(config))
        launcher.config = config
        context = HydraContext(config_loader=loader, callbacks=Callbacks())
        sweeper = Plugins.instance().instantiate_sweeper(
            hydra_context=context, task_function=None, config=config
        )
        sweeper.search.launcher = launcher
        sweeper.sweep(list(config.hydra.overrides.task))
        return jobs

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield run


def trials(storage=None):
    if storage is None:
        return study_in(Path("search")).trials
    return optuna.load_study(study_name="search", storage=storage).trials


def test_a_trial_whose_config_does_not_compose_failed_and_the_others_run(search, capfd):
    launcher = Launcher()
    search(launcher, *MIXED)
    found = trials()
    assert len(found) == 4
    failed = [trial.number for trial in found if trial.params["method"] == "linear_probe"]
    assert 0 < len(failed) < 4
    assert [t.number for t in found if t.state is TrialState.FAIL] == failed
    assert all("method=lora" in job for job in launcher.jobs)
    assert len(launcher.jobs) == 4 - len(failed)
    lines = capfd.readouterr().err.splitlines()
    told = [line for line in lines if "as its config does not compose" in line]
    assert len(told) == len(failed) == STATE.failed
    assert (
        f"job {failed[0] + 1} failed, as its config does not compose: method=linear_probe"
        in (told[0])
    )
    assert "unknown key 'method.rank'" in told[0]
    # a later start begins with another proposal, and not with those that failed
    search(launcher, *MIXED)
    assert [t.params for t in trials()[:4]] == [t.params for t in found]
    assert len(trials()) == 4 + len(failed)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("methd=choice(a,b)",), "unknown key 'methd'. Did you mean 'method'?"),
        (("lr=interval(0.1,0.2)", "method=bitft"), "there is no method=bitft. Did you mean 'bitf"),
    ],
)
def test_what_no_proposal_composes_with_is_told_before_there_is_a_study(
    search, tmp_path, words, message
):
    with pytest.raises(Exception, match="methd|bitft") as refused:
        search(Launcher(), *words)
    assert explain(refused.value).startswith(message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (ConfigError(["hydra.launcher: no"]), TrialState.FAIL),
        (RuntimeError("a worker died"), TrialState.RUNNING),
    ],
    ids=["refused", "died"],
)
def test_what_a_launcher_raises_ends_the_search_and_blocks_nothing(search, error, state):
    with pytest.raises(type(error), match="no|a worker died"):
        search(Launcher(error), *BITFIT)
    assert [trial.state for trial in trials()] == [state]
    launcher = Launcher()
    search(launcher, *BITFIT)
    assert len(launcher.jobs) == 2
    assert sum(trial.state is TrialState.COMPLETE for trial in trials()) == 2


def test_the_trials_of_this_start_that_failed_are_counted(search):
    search(Launcher(value=float("nan")), *BITFIT)
    assert STATE.failed == 2
    STATE.failed = 0
    search(Launcher(), *BITFIT)
    assert STATE.failed == 0
    assert [trial.state.name for trial in trials()] == ["FAIL", "FAIL", "COMPLETE", "COMPLETE"]


def test_a_study_of_another_search_is_refused(search, tmp_path):
    shared = "sqlite:///shared.db"
    words = ("lr=choice(0.1,0.2)", "hydra.sweeper.n_trials=1", f"hydra.sweeper.storage={shared}")
    search(Launcher(), "method=bitfit", *words, "name=here")
    with pytest.raises(
        ConfigError, match=r"belongs to another search: 'method=bitfit.*method=lora"
    ) as (refused):
        search(Launcher(), "method=lora", *words)
    assert "Choose another hydra.sweeper.study_name" in str(refused.value)
    assert len(trials(shared)) == 1
    search(Launcher(), "method=bitfit", *words, "hydra.sweeper.n_trials=2", "name=there")
    assert len(trials(shared)) == 2


def test_a_study_of_which_nothing_came_may_become_another_search(search):
    with pytest.raises(ConfigError, match="^no$"):
        search(Launcher(ConfigError(["no"])), *BITFIT)
    search(Launcher(), *BITFIT, "test=false")
    with pytest.raises(ConfigError, match="belongs to another search"):
        search(Launcher(), *BITFIT)


@pytest.mark.parametrize(
    ("objective", "ways"),
    [("null", ("maximize",)), ("[val/accuracy,val/loss]", ("maximize", "minimize"))],
)
def test_a_job_hears_which_way_was_settled(search, objective, ways):
    launcher = Launcher()
    launcher.value = [0.5] * len(ways)
    search(launcher, *BITFIT, f"objective={objective}", "hydra.sweeper.storage=null")
    loader = GlobalHydra.instance().config_loader()
    job = loader.load_sweep_config(launcher.config, list(launcher.jobs[0]))
    job.hydra.job.num = 0
    assert trial_of(job.hydra).directions == ways


def test_a_grid_has_as_many_jobs_as_combinations(search):
    launcher = Launcher()
    words = ("hydra/sweeper/sampler=grid", "lr=choice(0.1,0.2)", "seed=choice(0,1)")
    assert search(launcher, *words) == 4
    assert len(set(launcher.jobs)) == 4
    assert search(launcher, *words, "hydra.sweeper.n_trials=3") == 4


def test_a_grid_whose_last_combinations_do_not_compose_comes_to_its_end(search):
    words = [word for word in MIXED if "n_trials" not in word]
    search(Launcher(), *words, "hydra/sweeper/sampler=grid")
    found = trials()
    assert sorted(t.state.name for t in found) == ["COMPLETE", "COMPLETE", "FAIL", "FAIL"]
    assert {tuple(t.params.values()) for t in found} == {
        (method, rank) for method in ("linear_probe", "lora") for rank in (2, 4)
    }


KEYS = {
    "tpe": {
        *("seed", "consider_prior", "prior_weight", "consider_magic_clip", "consider_endpoints"),
        *("n_startup_trials", "n_ei_candidates", "multivariate", "warn_independent_sampling"),
    },
    "random": {"seed"},
    "cmaes": {
        *("seed", "x0", "sigma0", "independent_sampler", "warn_independent_sampling"),
        *("consider_pruned_trials", "restart_strategy", "inc_popsize", "use_separable_cma"),
        "source_trials",
    },
    "nsgaii": {
        *("seed", "population_size", "mutation_prob", "crossover_prob", "swapping_prob"),
        "constraints_func",
    },
    "grid": {"_partial_"},
}
"""The keys that samplers have in hydra-optuna-sweeper 1.3."""


OFTEN = ("tpe", "grid")


@pytest.mark.parametrize(
    "name", [n if n in OFTEN else pytest.param(n, marks=pytest.mark.slow) for n in KEYS]
)
def test_each_sampler_proposes_and_has_the_keys_of_hydras_plugin(search, name):
    launcher = Launcher(value=0.5)
    space = ("seed=range(0,3)", "bootstrap=range(0,4)", "method=bitfit")
    search(launcher, f"hydra/sweeper/sampler={name}", *space, "hydra.sweeper.n_trials=12")
    found = launcher.config.hydra.sweeper.sampler
    names = {"tpe": "TPE", "random": "Random", "cmaes": "CmaEs", "nsgaii": "NSGAII", "grid": "Grid"}
    assert found._target_ == f"optuna.samplers.{names[name]}Sampler"
    assert KEYS[name] == launcher.keys - {"_target_"}
    assert [t.state for t in trials()] == [TrialState.COMPLETE] * 12
    assert len(launcher.jobs) == 12
    if name == "grid":
        assert len(set(launcher.jobs)) == 12


def test_a_sampler_is_seeded_by_the_config_and_by_what_is_there(search, tmp_path):
    words = ("hydra/sweeper/sampler=tpe", "hydra.sweeper.n_trials=2", "lr=interval(0.1,0.2)")
    found = {}
    for seed in (0, 1):
        own = (f"hydra.sweeper.storage=s{seed}", f"hydra.sweeper.sampler.seed={seed}")
        search(Launcher(), *words, *own)
        search(Launcher(), *words, *own, "hydra.sweeper.n_trials=4")
        Path(f"s{seed}").rename("study.journal")
        found[seed] = [trial.params["lr"] for trial in study_in(tmp_path).trials]
        Path("study.journal").unlink()
    assert len({*found[0], *found[1]}) == 8, "neither starts anew with the same"
    twin = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0), direction="maximize")
    space = {"lr": optuna.distributions.FloatDistribution(0.1, 0.2)}
    for expected in found[0][:2]:
        trial = twin.ask(space)
        twin.tell(trial, 0.5)
        assert trial.params["lr"] == expected


def more_parameters(config, trial):
    trial.suggest_int("data.batch_size", 8, 8 + trial.params["seed"])


def the_same(config, trial):
    trial.suggest_categorical("method", ["lora"])


def test_a_function_adds_parameters_that_depend_on_others(search, monkeypatch):
    module = SimpleNamespace(more=more_parameters, same=the_same)
    monkeypatch.setitem(sys.modules, "added_parameters", module)
    words = ("method=bitfit", "seed=range(0,9)", "hydra.sweeper.n_trials=3")
    launcher = Launcher()
    search(launcher, *words, "hydra.sweeper.custom_search_space=added_parameters.more")
    for job, trial in zip(launcher.jobs, trials(), strict=True):
        assert 8 <= trial.params["data.batch_size"] <= 8 + trial.params["seed"]
        assert f"data.batch_size={trial.params['data.batch_size']}" in job
    with pytest.raises(ConfigError, match="custom_search_space: method is both searched and fix"):
        search(
            launcher,
            *words,
            "hydra.sweeper.custom_search_space=added_parameters.same",
            "hydra.sweeper.storage=null",
        )


def test_a_space_that_was_mended_is_not_that_of_the_trials_that_failed(search):
    with pytest.raises(ConfigError, match="^no$"):
        search(Launcher(ConfigError(["no"])), *BITFIT)
    words = ("method=bitfit", "lr=choice(0.3,0.4)", "hydra.sweeper.n_trials=2")
    with pytest.raises(ConfigError, match="has trials of another space .*Choose another hydra.sw"):
        search(Launcher(), *words)
    search(Launcher(), *words, "hydra.sweeper.study_name=another")


def test_a_trial_that_was_killed_while_it_was_proposed_has_failed(search):
    search(Launcher(), *BITFIT)
    study_in(Path("search")).ask()
    launcher = Launcher()
    search(launcher, *BITFIT, "hydra.sweeper.n_trials=3")
    assert [t.state.name for t in trials()] == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]
    assert len(launcher.jobs) == 1


@pytest.mark.parametrize(
    ("storage", "content"),
    [
        ("sqlite:///study.db", b"no database"),
        ("sqlit:///study.db", None),
        ("study.db", b"no journal"),
        ("study.db", b'{"op_code":0,"worker_id":"a"}\n'),
    ],
    ids=["a database", "an address", "a journal", "half a journal"],
)
def test_a_storage_that_cannot_be_opened_is_named(tmp_path, monkeypatch, storage, content):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "study.db").write_bytes(content * 100)
    with pytest.raises(ConfigError, match=rf"storage: expected .* got {storage}, which cannot"):
        standing_of(storage, "search", tmp_path)
    if content is not None:
        assert (tmp_path / "study.db").read_bytes() == content * 100, "it is not ours"
