"""A search: Optuna proposes, the launcher runs, and the study hears how each trial ended.

What is typed is read by Hydra's Optuna plugin. Its loop knows trials that are done and trials that
failed; this one also knows those that were pruned, and those of an earlier start that was killed.
The number of a trial is the number of its job, and so the name of its directory.
"""

from __future__ import annotations

import functools
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
from hydra_plugins.hydra_optuna_sweeper import _impl as plugin
from optuna.trial import TrialState

from lightning_peft.cli.config.errors import ConfigError, explain
from lightning_peft.cli.config.objectives import directions_of
from lightning_peft.cli.runs.summary import read_summary, write_text
from lightning_peft.cli.runs.trial import open_storage
from lightning_peft.cli.sweeps.search.space import grid_of, proposals_of, space_of
from lightning_peft.cli.sweeps.search.study import PLACE, cannot_open, keep_search, standing_of
from lightning_peft.cli.sweeps.state import STATE
from lightning_peft.errors import PEFTError

__all__ = ["Search", "SearchStopped"]

log = logging.getLogger(__name__)

RESULTS = "optimization_results.yaml"


class SearchStopped(PEFTError, RuntimeError):
    """Too many trials failed."""


class Search(plugin.OptunaSweeperImpl):
    """The sweeper behind ``hydra/sweeper=search``.

    Args:
        pruner: Optuna's pruner; the jobs ask it.
        **settings: Those of Hydra's plugin.
    """

    def __init__(self, *, pruner: Any = None, **settings: Any) -> None:
        super().__init__(**{"search_space": None, **settings})
        self.pruner = pruner
        self.not_composed: list[str] = []

    def sweep(self, arguments: Sequence[str]) -> None:
        """Run the search.

        Args:
            arguments: The overrides of the sweep.

        Raises:
            SearchStopped: If more than ``max_failure_rate`` of the trials at once failed.
        """
        space, fixed = self._space(arguments)
        self._check_proposals(space, fixed)
        place = Path(self.sweep_dir).resolve()
        place.mkdir(parents=True, exist_ok=True)
        study = self._study()
        standing = standing_of(self.storage, self.study_name, place)
        left = self.n_trials - standing.done - len(standing.interrupted)
        try:
            study = self._run(study, [study.trials[n] for n in standing.interrupted], fixed)
            while left > 0:
                trials = [study.ask() for _ in range(min(self.n_jobs, left))]
                self._configure_trials(trials, space, fixed)
                study = self._run(study, trials, fixed)
                left -= len(trials)
        finally:
            for line in self.not_composed:
                print(f"lightning-peft: {line}", file=sys.stderr)
        write_text(place / RESULTS, _results(study))

    def _space(self, arguments: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read what is searched, and what is the same in every trial."""
        self._process_searchspace_config()
        words = [*self._parse_sweeper_params_config(), *arguments]
        space, fixed = space_of(words, self.search_space_distributions)
        if isinstance(self.sampler, functools.partial):  # the grid, which has to know the space
            grid = grid_of(space)
            self.sampler = self.sampler(grid)
            self.n_trials = min(self.n_trials, math.prod(map(len, grid.values())))
        return space, fixed

    def _check_proposals(self, space: dict[str, Any], fixed: dict[str, Any]) -> None:
        """Raise what is wrong with the config where it composes with no proposal.

        A mistyped key is found before there is a study. Where some proposals compose, those that
        do not are failed trials.
        """
        if self.custom_search_space_extender is not None:  # it adds parameters
            return
        errors: list[Exception] = []
        for params in proposals_of(space):
            error = self._problem(_overrides(params, fixed))
            if error is None:
                return
            errors.append(error)
        raise errors[0]

    def _problem(self, overrides: Sequence[str]) -> Exception | None:
        """Compose the config of a trial; what is wrong with it, if anything."""
        context: Any = self.hydra_context
        config: Any = self.config
        try:
            context.config_loader.load_sweep_config(config, list(overrides))
        except Exception as error:
            return error
        return None

    def _study(self) -> Any:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            study = optuna.create_study(
                study_name=self.study_name,
                storage=open_storage(self.storage),
                sampler=self.sampler,
                pruner=self.pruner,
                directions=list(directions_of(self.direction)),
                load_if_exists=True,
            )
        except Exception as error:
            if not (isinstance(error, ValueError) and "study direction" in str(error)):
                raise cannot_open(self.storage, error) from error
            told = f"the study '{self.study_name}' of {self.storage} has others ({error})"
            raise ConfigError(
                [f"hydra.sweeper.direction: {told} Choose another hydra.sweeper.study_name."]
            ) from error
        keep_search(study, self.config)
        return study

    def _reread(self, study: Any) -> Any:
        """Open a study in a database again: Optuna keeps in memory what the jobs have changed."""
        if not isinstance(self.storage, str):
            return study
        return optuna.load_study(
            study_name=study.study_name,
            storage=open_storage(self.storage),
            sampler=self.sampler,
            pruner=self.pruner,
        )

    def _run(self, study: Any, trials: Sequence[Any], fixed: dict[str, Any]) -> Any:
        """Run trials, and tell the study, which is given back as it is then."""
        launcher: Any = self.launcher
        composed = self._composed(study, trials, fixed)
        failed = len(trials) - len(composed)
        for batch in _consecutive(composed):
            overrides = [_overrides(trial.params, fixed) for trial in batch]
            try:
                returns = launcher.launch(overrides, initial_job_idx=batch[0].number)
            except Exception as error:
                self._give_up(self._reread(study), batch, error)
                raise
            study = self._reread(study)
            for trial, ended in zip(batch, returns, strict=True):
                values = _values(ended)
                failed += values is None and not _was_pruned(ended)
                STATE.failed += _failed(ended)
                _tell(study, trial.number, ended, values)
        if trials and failed / len(trials) > self.max_failure_rate:
            raise SearchStopped(
                f"{failed} of {len(trials)} trials at once failed, and "
                f"hydra.sweeper.max_failure_rate is {self.max_failure_rate:g}"
            )
        return study

    def _composed(self, study: Any, trials: Sequence[Any], fixed: dict[str, Any]) -> list[Any]:
        """Keep the trials whose config composes; the study is told that the others failed."""
        found = []
        for trial in trials:
            overrides = _overrides(trial.params, fixed)
            error = self._problem(overrides)
            if error is None:
                if isinstance(trial, optuna.Trial):  # from here on it can be run again
                    trial.set_user_attr(PLACE, str(Path(self.sweep_dir).resolve()))
                found.append(trial)
                continue
            study.tell(trial.number, state=TrialState.FAIL)
            why = explain(error) or f"{type(error).__name__}: {error}"
            self.not_composed.append(
                f"job {trial.number + 1} failed, as its config does not compose: "
                f"{' '.join(overrides)}: {' '.join(why.split())}"
            )
            STATE.failed += 1
        return found

    def _give_up(self, study: Any, batch: Sequence[Any], error: Exception) -> None:
        """Tell the study of trials that a launcher refused: they would be refused again."""
        if explain(error) is None or isinstance(error, RuntimeError):
            return  # a worker that died, a full disk: they are run again
        for trial in batch:
            if study.trials[trial.number].state is TrialState.RUNNING:
                study.tell(trial.number, state=TrialState.FAIL)


def _consecutive(trials: Sequence[Any]) -> Iterator[list[Any]]:
    """Part trials where their numbers leap: a launcher numbers its jobs one by one."""
    batch: list[Any] = []
    for trial in trials:
        if batch and trial.number != batch[-1].number + 1:
            yield batch
            batch = []
        batch.append(trial)
    if batch:
        yield batch


def _overrides(params: dict[str, Any], fixed: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"{name}={value}" for name, value in {**params, **fixed}.items())


def _tell(study: Any, number: int, ended: Any, values: list[float] | None) -> None:
    try:
        if _was_pruned(ended):
            study.tell(number, state=TrialState.PRUNED)
        elif values is None:
            study.tell(number, state=TrialState.FAIL)
        else:
            study.tell(number, values)
    except RuntimeError as error:  # the grid stops a study that Optuna does not run itself
        if "Study.stop" not in str(error):
            raise
    except ValueError as error:  # such as one value where the study has two objectives
        log.warning("trial %d counts as failed: %s", number, error)
        study.tell(number, state=TrialState.FAIL)


def _values(ended: Any) -> list[float] | None:
    """The objectives of a job; ``None`` where it failed."""
    try:
        value = ended.return_value
    except Exception:  # what the job raised; the comparison tells it
        return None
    try:
        values = [float(v) for v in (value if isinstance(value, list | tuple) else [value])]
    except (TypeError, ValueError):
        return None
    return values if all(math.isfinite(v) for v in values) else None


def _failed(ended: Any) -> bool:
    """Whether the job itself failed; one without an objective to tell may be whole."""
    try:
        value = ended.return_value
    except Exception:
        return True
    return isinstance(value, float) and math.isnan(value)


def _was_pruned(ended: Any) -> bool:
    """Whether the job's summary says so: it is what every launcher leaves behind."""
    try:
        directory = Path(ended.hydra_cfg.hydra.runtime.output_dir)
    except (TypeError, AttributeError):  # a launcher that does not say where the job ran
        return False
    return read_summary(directory).get("status") == "pruned"


def _results(study: Any) -> str:
    """What was best, as Hydra's plugin writes it."""
    from omegaconf import OmegaConf

    content: dict[str, Any] = {"name": "optuna"}
    if len(study.directions) > 1:
        best = study.best_trials
        content["solutions"] = [{"params": t.params, "values": list(t.values)} for t in best]
    elif any(trial.state is TrialState.COMPLETE for trial in study.trials):
        content |= {"best_params": study.best_trial.params, "best_value": study.best_trial.value}
    return OmegaConf.to_yaml(OmegaConf.create(content))
