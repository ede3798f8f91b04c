"""What becomes of the trials of a search, with a launcher that runs nothing."""

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
        typed += ["++hydra.sweeper.sampler.seed=0"] * ("grid" not in " ".join(words)) + [*words]
        config = loader.load_configuration("config", typed, run_mode=RunMode.MULTIRUN)
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


def trials(storage="sqlite:///search/study.db"):
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
    with pytest.raises(ConfigError, match=r"is of another search: 'method=bitfit.*method=lora") as (
        refused
    ):
        search(Launcher(), "method=lora", *words)
    assert "Choose another hydra.sweeper.study_name" in str(refused.value)
    assert len(trials(shared)) == 1
    search(Launcher(), "method=bitfit", *words, "hydra.sweeper.n_trials=2", "name=there")
    assert len(trials(shared)) == 2


def test_a_study_of_which_nothing_came_may_become_another_search(search):
    with pytest.raises(ConfigError, match="^no$"):
        search(Launcher(ConfigError(["no"])), *BITFIT)
    search(Launcher(), *BITFIT, "test=false")
    with pytest.raises(ConfigError, match="is of another search"):
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


@pytest.mark.parametrize(
    ("storage", "content"),
    [("sqlite:///study.db", b"no database"), ("sqlit:///study.db", None)],
    ids=["a file", "an address"],
)
def test_a_storage_that_cannot_be_opened_is_named(tmp_path, monkeypatch, storage, content):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "study.db").write_bytes(content * 100)
    with pytest.raises(ConfigError, match=rf"storage: expected .* got {storage}, which cannot"):
        standing_of(storage, "search", tmp_path)
