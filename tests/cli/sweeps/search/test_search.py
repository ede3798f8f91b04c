"""Searches with Optuna, from the command line to the table: whole, interrupted, pruned."""

import json
import shutil

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from tests.cli.conftest import study_in

pytestmark = pytest.mark.usefixtures("undrawn")

SEARCH = (
    *("-m", "experiment=optuna", "hydra.sweep.dir=search", "hydra.sweeper.params.method=bitfit"),
    *("trainer=cpu", "trainer.max_steps=6", "trainer.limit_val_batches=1"),
    *("data.labels_per_class=2", "data.batch_size=8", "data.steps_per_epoch=2"),
)
MEMORY = "hydra.sweeper.storage=null"


def trials(directory):
    return study_in(directory).trials


def summaries(directory):
    found = {}
    for path in directory.glob("*/summary.json"):
        found[int(path.parent.name.partition("_")[0])] = json.loads(path.read_text())
    return dict(sorted(found.items()))


def figures(directory):
    return {
        number: {
            key: s.get(key) for key in ("status", "overrides", "metrics", "objective", "steps")
        }
        for number, s in summaries(directory).items()
    }


def test_a_search_runs_and_goes_on_with_the_same_command(train, tmp_path):
    where = tmp_path / "search"
    status, out, err = train(*SEARCH, "hydra.sweeper.n_trials=3", "objective=val/loss")
    assert status == 0, err
    found, left = trials(where), summaries(where)
    assert [trial.state for trial in found] == [TrialState.COMPLETE] * 3
    # a trial has the number of its job, its parameters, and the objective that the config names
    for trial in found:
        summary = left[trial.number]
        assert f"lr={trial.params['lr']}" in summary["overrides"]
        assert summary["objective"] == {"name": "val/loss", "value": trial.value}
    study = study_in(where)
    assert study.direction.name == "MINIMIZE"  # of a loss; nobody has said so
    assert yaml.safe_load((where / "optimization_results.yaml").read_text()) == {
        "name": "optuna",
        "best_params": study.best_trial.params,
        "best_value": min(trial.value for trial in found),
    }
    rows = json.loads((where / "comparison.json").read_text())["rows"]
    assert len(rows) == 3
    assert [line.partition(":")[0] for line in err.splitlines() if line.startswith("job ")] == [
        "job 1 of 3",
        "job 2 of 3",
        "job 3 of 3",
    ]

    before = figures(where)
    status, out, err = train(*SEARCH, "hydra.sweeper.n_trials=3", "objective=val/loss")
    assert (status, "job " in err) == (0, False), "everything is done"
    assert "bitfit lr=" in out
    status, out, err = train(*SEARCH, "hydra.sweeper.n_trials=4", "objective=val/loss")
    assert status == 0, err
    assert "job 4 of 4: lr=" in err
    after = figures(where)
    assert after[3]["status"] == "completed"
    assert {number: after[number] for number in before} == before
    assert len({trial.params["lr"] for trial in trials(where)}) == 4, "nothing is proposed twice"


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [pytest.param((), id="in a file"), pytest.param((MEMORY,), id="in memory")]
)
def test_an_interrupted_search_goes_on_to_its_number_of_trials(train, tmp_path, interrupt, more):
    words = (*SEARCH, "hydra.sweeper.n_trials=3", "hydra.sweeper.params.method=bitfit", *more)
    assert train(*words)[0] == 0
    shutil.move(tmp_path / "search", tmp_path / "whole")
    undo = interrupt(4, "seed 0")  # the first trial, after two epochs
    status, _, err = train(*words)
    assert status != 0
    assert "lightning-peft continue search" in err
    undo()
    if not more:
        assert [trial.state for trial in trials(tmp_path / "search")] == [TrialState.RUNNING]

    status, _, err = train(*words)
    assert status == 0, err
    assert "job 1 of 3: lr=" in err
    assert "(from its last checkpoint)" in err
    whole, again = figures(tmp_path / "whole"), figures(tmp_path / "search")
    assert len(whole) == len(again) == 3
    assert again[0] == whole[0], "the trial that was under way came to what it would have"
    if more:  # the sampler's seed proposes the same again
        assert again == whole
    else:
        found = trials(tmp_path / "search")
        assert [trial.state for trial in found] == [TrialState.COMPLETE] * 3
        assert [t.params for t in found][:1] == [t.params for t in trials(tmp_path / "whole")][:1]


PRUNED = (
    *(*SEARCH, "objective=val/loss", "hydra/sweeper/sampler=grid"),
    # of these two, one never learns anything
    *("hydra.sweeper.params.lr='choice(1e-3,1e2)'", "hydra.sweeper.n_trials=2"),
    "hydra.sweeper.pruner._target_=optuna.pruners.ThresholdPruner",
    *("+hydra.sweeper.pruner.upper=10", "+hydra.sweeper.pruner.n_warmup_steps=1"),
)


def test_a_hopeless_trial_is_pruned_and_is_neither_failed_nor_finished(train, tmp_path):
    where = tmp_path / "search"
    status, out, err = train(*PRUNED)
    assert status == 0, err
    states = {trial.params["lr"]: trial.state for trial in trials(where)}
    assert states == {1e-3: TrialState.COMPLETE, 1e2: TrialState.PRUNED}
    (pruned,) = [trial for trial in trials(where) if trial.state is TrialState.PRUNED]
    summary = summaries(where)[pruned.number]
    assert summary["status"] == "pruned"
    # the first validation is not judged; an epoch is two steps
    assert summary["pruned"]["step"] == summary["steps"] == 4
    assert summary["pruned"]["validation"] == 2
    assert summary["pruned"]["value"] == pruned.intermediate_values[1] == pruned.value > 10
    assert not (where / f"{pruned.number}_bitfit_seed0" / "adapter").exists()
    assert "pruned: 1 of 2 runs, stopped by their search after 4 steps" in out
    assert "bitfit lr=100.0" not in out
    comparison = json.loads((where / "comparison.json").read_text())
    rows = {
        row["label"]: (row["pruned"], row["accuracy"], row["failed"]) for row in comparison["rows"]
    }
    assert rows["bitfit lr=100.0"] == (1, None, [])
    assert rows["bitfit lr=0.001"][0] == 0

    before = figures(where)
    status, _, err = train(*PRUNED)
    assert (status, "job " in err) == (0, False), err
    assert figures(where) == before


@pytest.mark.slow
def test_a_pruned_job_whose_sweep_was_killed_is_not_run_again(train, tmp_path):
    assert train(*PRUNED)[0] == 0
    where = tmp_path / "search"
    before = figures(where)
    (where / "study.journal").unlink()  # nobody has heard of it
    status, _, err = train(*PRUNED)
    assert status == 0, err
    assert sum(": done already" in line for line in err.splitlines()) == 1
    assert sum(": pruned already" in line for line in err.splitlines()) == 1
    assert sorted(t.state.name for t in trials(where)) == ["COMPLETE", "PRUNED"]
    assert figures(where) == before


@pytest.mark.slow
def test_several_objectives_end_in_the_pareto_set(train, tmp_path):
    where = tmp_path / "search"
    words = ("objective=[val/loss,trained_parameters]", "hydra/sweeper/sampler=nsgaii")
    method = "hydra.sweeper.params.method='choice(bitfit,linear_probe)'"
    status, out, err = train(*SEARCH, method, *words, "hydra.sweeper.n_trials=4")
    assert status == 0, err
    study = study_in(where)
    assert [direction.name for direction in study.directions] == ["MINIMIZE", "MINIMIZE"]
    for trial in study.trials:
        summary = summaries(where)[trial.number]
        trained = summary["parameters"]["trained"]
        assert trial.values == [summary["metrics"]["val/loss"], trained]
    pareto = json.loads((where / "comparison.json").read_text())["pareto"]
    assert pareto["objectives"] == ["val/loss", "trained_parameters"]
    assert pareto["runs"] == 4
    expected = sorted(tuple(trial.values) for trial in study.best_trials)
    assert [tuple(member["values"]) for member in pareto["members"]] == expected
    assert f"Pareto set: {len(expected)} of 4 runs" in out
    assert "val loss (least)  trained parameters (least)" in out


def test_a_trial_that_fails_leaves_the_search_running_and_another_takes_its_place(train, tmp_path):
    own = [word for word in SEARCH if not word.startswith("data.labels_per_class")]
    words = (*own, "data.labels_per_class=choice(3000)", "hydra.sweeper.n_trials=1")
    status, out, _ = train(*words)
    assert status == 1
    assert [trial.state for trial in trials(tmp_path / "search")] == [TrialState.FAIL]
    assert "failed: bitfit" in out
    status, _, err = train(*words)
    assert status == 1
    assert "job 2 of 2: " in err
    assert len(trials(tmp_path / "search")) == 2


def test_what_is_wrong_with_a_search_is_told_before_anything_is_made(train, tmp_path):
    wrong = ("objective=[val/acuracy,trained_parameters]", "hydra/sweeper/pruner=median")
    status, _, err = train(*SEARCH, *wrong)
    assert status == 2
    assert "got 'val/acuracy'. Did you mean 'val/accuracy'" in err
    assert "Optuna prunes by one objective, got 2" in err
    assert list(tmp_path.iterdir()) == []


def test_a_study_of_another_direction_is_refused(train, tmp_path):
    (tmp_path / "search").mkdir()
    journal = optuna.storages.journal.JournalFileBackend(f"{tmp_path}/search/study.journal")
    storage = optuna.storages.JournalStorage(journal)
    optuna.create_study(study_name="search", storage=storage, direction="minimize")
    status, _, err = train(*SEARCH)
    assert status == 2, err
    assert "study 'search' of search/study.journal has the direction minimize, got maximize." in err
    assert trials(tmp_path / "search") == []


def test_hydras_own_name_for_the_sweeper_is_the_same_search(train, tmp_path):
    own = [word for word in SEARCH if not word.startswith(("experiment", "hydra.sweeper.params"))]
    settings = ("hydra.sweeper.n_trials=2", "hydra.sweeper.sampler.seed=0")
    words = (*own, "hydra/sweeper=optuna", *settings, "test=false")
    status, _, err = train(*words, "method=bitfit", "lr=interval(1e-4,1e-2)")
    assert status == 0, err
    found = summaries(tmp_path / "search")
    assert sorted(found) == [0, 1]
    results = yaml.safe_load((tmp_path / "search" / "optimization_results.yaml").read_text())
    scores = [summary["objective"]["value"] for summary in found.values()]
    assert results["best_value"] == max(scores), "Hydra's own plugin looked for the least"
