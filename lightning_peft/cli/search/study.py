"""The study of a search: which of its trials are done, and what a later start has left to do.

A trial that was under way when its process was killed still counts as running in the study. It is
run again under its own number, in its own directory, where it goes on from its last checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_peft.cli.search.trial import FILE, open_storage

__all__ = ["PLACE", "Standing", "prepare_search", "standing_of"]

PLACE = "lightning_peft_sweep"
"""The attribute of a trial that says in the directory of which sweep it runs."""

OF_THE_PLUGIN = "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"
OURS = "hydra_plugins.lightning_peft_search.OptunaSearch"


@dataclass(frozen=True)
class Standing:
    """How a study stands.

    Attributes:
        trials: How many trials it has, whatever became of them.
        done: How many came to their end, or were stopped by the pruner.
        interrupted: The numbers of those that were under way in this sweep, to be run again.
    """

    trials: int = 0
    done: int = 0
    interrupted: tuple[int, ...] = ()

    def jobs(self, n_trials: int) -> int:
        """Count the jobs of the sweep, of earlier starts as well, by the number of the last."""
        return self.trials - len(self.interrupted) + max(n_trials - self.done, 0)


def prepare_search(config: Any) -> Standing | None:
    """Fit the config of a sweep to what its study holds; changes nothing for other sweepers.

    Args:
        config: The config of the sweep; ``hydra.sweeper`` is changed.

    Returns:
        How the study stands, or ``None`` where the sweep is no search.
    """
    from omegaconf import open_dict, read_write

    sweeper = config.hydra.sweeper
    if "n_trials" not in sweeper:
        return None
    standing = standing_of(
        sweeper.get("storage"), sweeper.get("study_name"), config.hydra.sweep.dir
    )
    with read_write(config), open_dict(config):
        if sweeper.get("_target_") == OF_THE_PLUGIN:  # the same search, which also goes on
            sweeper._target_ = OURS
        sampler: Any = sweeper.get("sampler") or {}
        if "seed" in sampler:  # without trials it proposes the same again, with them something else
            sampler.seed = (sampler.seed or 0) + standing.trials
    return standing


def standing_of(storage: Any, name: str | None, directory: str | Path) -> Standing:
    """Look into the database of a study, which is not made by that.

    Args:
        storage: As ``hydra.sweeper.storage``.
        name: The study's name.
        directory: The directory of the sweep.
    """
    if not isinstance(storage, str) or name is None:
        return Standing()
    if storage.startswith(FILE) and not Path(storage.removeprefix(FILE)).is_file():
        return Standing()
    import optuna

    opened = open_storage(storage)
    if name not in {study.study_name for study in optuna.get_all_study_summaries(opened)}:
        return Standing()
    trials = optuna.load_study(study_name=name, storage=opened).get_trials(deepcopy=False)
    return _standing(trials, str(Path(directory).resolve()))


def _standing(trials: Sequence[Any], place: str) -> Standing:
    from optuna.trial import TrialState

    done = sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)
    # of a trial that was killed before it had its parameters there is nothing to run again
    interrupted = tuple(
        trial.number
        for trial in trials
        if trial.state is TrialState.RUNNING and trial.user_attrs.get(PLACE) == place
    )
    return Standing(len(trials), done, interrupted)
