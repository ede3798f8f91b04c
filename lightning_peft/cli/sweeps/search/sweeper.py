"""Run a search: Optuna proposes trials, the launcher runs them, the study records the results.

The number of a trial is the number of its job, and so the name of its directory. Trials of an
earlier start that was killed run again under their own numbers.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from lightning_peft.cli.config.errors import ConfigError, explain
from lightning_peft.cli.config.objectives import directions_of
from lightning_peft.cli.runs.storage import cannot_open, file_of, open_storage
from lightning_peft.cli.runs.summary import read_summary, write_text
from lightning_peft.cli.sweeps.search.space import grid_of, overrides_of, proposals_of, space_of
from lightning_peft.cli.sweeps.search.study import PLACE, keep_search, standing_among
from lightning_peft.cli.sweeps.state import STATE
from lightning_peft.errors import PEFTError
from lightning_peft.lightning.signals import LISTENER, Stopped

__all__ = ["Search", "SearchStopped"]

log = logging.getLogger(__name__)

RESULTS = "optimization_results.yaml"


class SearchStopped(PEFTError, RuntimeError):
    """Raised if too many trials failed."""


@dataclass
class Search:
    """The sweeper behind ``hydra/sweeper=search``; ``conf/hydra/sweeper/search.yaml`` has its keys.

    Attributes:
        n_trials: The number of trials, including those of earlier starts.
        sampler: Optuna's sampler; for the grid, a function that builds it from its space.
        pruner: Optuna's pruner; the jobs ask it.
        direction: ``"maximize"`` or ``"minimize"``, one for each objective.
        storage: Where the study is stored.
        study_name: The name of the study.
        n_jobs: The number of trials at once.
        max_failure_rate: The fraction of the trials at once that may fail.
        params: The search space.
        custom_search_space: The path of a function that takes the config and a trial of Optuna,
            and adds parameters.
    """

    n_trials: int
    sampler: Any = None
    pruner: Any = None
    direction: Any = None
    storage: Any = None
    study_name: str | None = None
    n_jobs: int = 1
    max_failure_rate: float = 1.0
    params: Mapping[str, Any] | None = None
    custom_search_space: str | None = None
    not_composed: list[str] = field(default_factory=list, init=False)

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Store the arguments of Hydra, and create the launcher."""
        from hydra.core.plugins import Plugins

        self.hydra_context = hydra_context
        self.config = config
        self.place = Path(config.hydra.sweep.dir).resolve()
        self.launcher: Any = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: Sequence[str]) -> None:
        """Run the search.

        Args:
            arguments: The overrides of the sweep.

        Raises:
            SearchStopped: If more than ``max_failure_rate`` of the trials at once failed.
        """
        params = [f"{key}={value}" for key, value in (self.params or {}).items()]
        space, fixed = space_of([*params, *arguments])
        self._check_proposals(space, fixed)
        self.place.mkdir(parents=True, exist_ok=True)
        study = self._study(space)
        trials = study.get_trials(deepcopy=False)
        standing = standing_among(trials, self.place, file_of(self.storage))
        left = self.n_trials - standing.done - len(standing.interrupted)
        try:
            self._run(study, [study.trials[n] for n in standing.interrupted], fixed)
            while left > 0:
                trials = [self._ask(study, space, fixed) for _ in range(min(self.n_jobs, left))]
                self._run(study, trials, fixed)
                left -= len(trials)
        finally:
            for line in self.not_composed:
                print(f"lightning-peft: {line}", file=sys.stderr)
        write_text(self.place / RESULTS, _results(study))

    def _check_proposals(self, space: dict[str, Any], fixed: dict[str, str]) -> None:
        """Raise the error of the config if it composes with no proposal.

        A mistyped key is found before there is a study. Where some proposals compose, those that
        do not are failed trials.
        """
        if self.custom_search_space is not None:  # it adds parameters
            return
        errors: list[Exception] = []
        for params in proposals_of(space):
            error = self._problem(overrides_of(params, fixed))
            if error is None:
                return
            errors.append(error)
        raise errors[0]

    def _problem(self, overrides: Sequence[str]) -> Exception | None:
        """Return what is wrong with the composed config of a trial, if anything."""
        try:
            self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        except Exception as error:
            return error
        return None

    def _study(self, space: dict[str, Any]) -> Any:
        """Create the study, or open that of an earlier start."""
        sampler = self.sampler
        if callable(sampler):  # the grid, which has to know the space
            sampler = sampler(grid_of(space))
        storage = open_storage(self.storage)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            study = optuna.create_study(
                study_name=self.study_name,
                storage=storage,
                sampler=sampler,
                pruner=self.pruner,
                directions=list(directions_of(self.direction)),
                load_if_exists=True,
            )
        except Exception as error:
            raise cannot_open(self.storage, error) from error
        keep_search(study, self.config)
        file = file_of(self.storage)
        if file is not None and self.place in file.resolve().parents:  # nobody else is at work here
            for trial in study.get_trials(deepcopy=False):
                if trial.state is TrialState.RUNNING and PLACE not in trial.user_attrs:
                    _end(study, trial.number, TrialState.FAIL)  # killed while it was proposed
        return study

    def _ask(self, study: Any, space: dict[str, Any], fixed: dict[str, str]) -> Any:
        """Return a proposal of Optuna as a trial."""
        try:
            trial = study.ask(space)
        except ValueError as error:  # of trials that all failed, before the space was mended
            raise ConfigError(
                [
                    f"hydra.sweeper.study_name: the study '{self.study_name}' has trials of "
                    f"another space ({error}). Choose another hydra.sweeper.study_name."
                ]
            ) from error
        if self.custom_search_space is not None:
            from hydra.utils import get_method

            get_method(self.custom_search_space)(self.config, trial)
            both = sorted(trial.params.keys() & fixed)
            if both:
                raise ConfigError(
                    [
                        f"hydra.sweeper.custom_search_space: {', '.join(both)} is both searched "
                        "and fixed. Leave it out there, or on the command line."
                    ]
                )
        return trial

    def _run(self, study: Any, trials: Sequence[Any], fixed: dict[str, str]) -> None:
        """Run trials, and report their results to the study."""
        composed = self._composed(study, trials, fixed)
        failed = len(trials) - len(composed)
        for batch in _consecutive(composed):
            overrides = [overrides_of(trial.params, fixed) for trial in batch]
            try:
                returns = self.launcher.launch(overrides, initial_job_idx=batch[0].number)
            except Exception as error:
                _give_up(study, batch, error)
                raise
            for trial, ended in zip(batch, returns, strict=True):
                values = _values(ended)
                if LISTENER.number is not None and values is None and not _is_over(ended):
                    continue  # interrupted: it is run again
                failed += values is None and not _was_pruned(ended)
                STATE.failed += _failed(ended)
                _tell(study, trial.number, ended, values)
        if LISTENER.number is not None:
            raise Stopped(LISTENER.number)
        if trials and failed / len(trials) > self.max_failure_rate:
            raise SearchStopped(
                f"{failed} of {len(trials)} trials at once failed, and "
                f"hydra.sweeper.max_failure_rate is {self.max_failure_rate:g}"
            )

    def _composed(self, study: Any, trials: Sequence[Any], fixed: dict[str, str]) -> list[Any]:
        """Return the trials whose config composes, and record the others as failed."""
        found = []
        for trial in trials:
            overrides = overrides_of(trial.params, fixed)
            error = self._problem(overrides)
            if error is None:
                if isinstance(trial, optuna.Trial):  # from here on it can be run again
                    trial.set_user_attr(PLACE, str(self.place))
                found.append(trial)
                continue
            _end(study, trial.number, TrialState.FAIL)
            why = explain(error) or f"{type(error).__name__}: {error}"
            self.not_composed.append(
                f"job {trial.number + 1} failed, as its config does not compose: "
                f"{' '.join(overrides)}: {' '.join(why.split())}"
            )
            STATE.failed += 1
        return found


def _give_up(study: Any, batch: Sequence[Any], error: Exception) -> None:
    """Record trials that a launcher refused as failed, since it would refuse them again."""
    if explain(error) is None or isinstance(error, RuntimeError):
        return  # a worker that died, a full disk: they are run again
    for trial in batch:
        if study.trials[trial.number].state is TrialState.RUNNING:
            _end(study, trial.number, TrialState.FAIL)


def _consecutive(trials: Sequence[Any]) -> Iterator[list[Any]]:
    """Split trials where their numbers jump, since a launcher numbers its jobs consecutively."""
    batch: list[Any] = []
    for trial in trials:
        if batch and trial.number != batch[-1].number + 1:
            yield batch
            batch = []
        batch.append(trial)
    if batch:
        yield batch


def _tell(study: Any, number: int, ended: Any, values: list[float] | None) -> None:
    if _was_pruned(ended):
        _end(study, number, TrialState.PRUNED)
    elif values is None:
        _end(study, number, TrialState.FAIL)
    else:
        try:
            _end(study, number, TrialState.COMPLETE, values)
        except ValueError as error:  # such as one value where the study has two objectives
            log.warning("trial %d counts as failed: %s", number, error)
            _end(study, number, TrialState.FAIL)


def _end(study: Any, number: int, state: TrialState, values: list[float] | None = None) -> None:
    try:
        study.tell(number, values, state=state)
    except RuntimeError as error:  # the grid stops a study that Optuna does not run itself
        if "Study.stop" not in str(error):
            raise


def _values(ended: Any) -> list[float] | None:
    """Return the objectives of a job; ``None`` if it failed."""
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
    """Whether the job itself failed; a job without an objective may have succeeded."""
    try:
        value = ended.return_value
    except Exception:
        return True
    return isinstance(value, float) and math.isnan(value)


def _was_pruned(ended: Any) -> bool:
    """Whether a job was pruned."""
    return _status(ended) == "pruned"


def _is_over(ended: Any) -> bool:
    """Whether a job without a result has ended by itself."""
    return _status(ended) in ("pruned", "failed")


def _status(ended: Any) -> str | None:
    """Return the status in the summary of a job, which every launcher leaves behind."""
    try:
        directory = Path(ended.hydra_cfg.hydra.runtime.output_dir)
    except (TypeError, AttributeError):  # a launcher that does not say where the job ran
        return None
    return read_summary(directory).get("status")


def _results(study: Any) -> str:
    """Write the best results, as Hydra's own plugin for Optuna did."""
    from omegaconf import OmegaConf

    content: dict[str, Any] = {"name": "optuna"}
    if len(study.directions) > 1:
        best = study.best_trials
        content["solutions"] = [{"params": t.params, "values": list(t.values)} for t in best]
    elif any(trial.state is TrialState.COMPLETE for trial in study.trials):
        content |= {"best_params": study.best_trial.params, "best_value": study.best_trial.value}
    return OmegaConf.to_yaml(OmegaConf.create(content))
