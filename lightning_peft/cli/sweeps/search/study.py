"""The study of a search: which of its trials are done, and what a later start has left to do.

A trial that was under way when its process was killed still counts as running in the study. It is
run again under its own number, in its own directory, where it goes on from its last checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.config.objectives import directions_of
from lightning_peft.cli.runs.trial import FILE, open_storage
from lightning_peft.cli.sweeps.record import Standing, sweep_of, told, words_of

__all__ = ["GRID", "PLACE", "cannot_open", "keep_search", "prepare_search", "standing_of"]

PLACE = "lightning_peft_sweep"
"""The attribute of a trial that says in the directory of which sweep it runs."""

SEARCH = "lightning_peft_search"
"""The attribute of a study that says which search it is of."""

OF_THE_PLACE = ("data.root=", "output_dir=", "name=", "logger=", "logger.")
"""Overrides in which the parts of one search may differ that two machines run."""

GRID = ".GridSampler"
"""What the name of the sampler ends with that tries every value."""

OF_THE_PLUGIN = "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"
OURS = "hydra_plugins.lightning_peft_search.OptunaSearch"


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
        sweeper.get("storage"), sweeper.get("study_name"), config.hydra.sweep.dir, _search(config)
    )
    sampler: Any = sweeper.get("sampler") or {}
    with read_write(config), open_dict(config):
        if sweeper.get("_target_") == OF_THE_PLUGIN:  # the same search, which also goes on
            sweeper._target_ = OURS
        if str(sampler.get("_target_")).endswith(GRID):
            from lightning_peft.cli.sweeps.search.space import grid_of, space_of

            grid = grid_of(space_of(words_of(config))[0])
            sweeper.n_trials = min(sweeper.n_trials, math.prod(map(len, grid.values())))
        if "seed" in sampler:  # without trials it proposes the same again, with them something else
            sampler.seed = (sampler.seed or 0) + standing.trials
        # the jobs compose their config anew, and have to hear what was settled
        ways = directions_of(sweeper.get("direction"))
        if ways:
            word = ways[0] if len(ways) == 1 else f"[{','.join(ways)}]"
            config.hydra.overrides.hydra.append(f"++hydra.sweeper.direction={word}")
    return standing


def standing_of(
    storage: Any, name: str | None, directory: str | Path, search: Mapping[str, Any] | None = None
) -> Standing:
    """Look into the database of a study, which is not made by that.

    Args:
        storage: As ``hydra.sweeper.storage``.
        name: The study's name.
        directory: The directory of the sweep.
        search: Which search it has to be of, as :func:`keep_search` keeps it.

    Raises:
        ConfigError: If the database cannot be read, or the study is of another search.
    """
    if not isinstance(storage, str) or name is None:
        return Standing()
    if storage.startswith(FILE) and not Path(storage.removeprefix(FILE)).is_file():
        return Standing()
    import optuna

    try:
        opened = open_storage(storage)
        if name not in {study.study_name for study in optuna.get_all_study_summaries(opened)}:
            return Standing()
        study = optuna.load_study(study_name=name, storage=opened)
        trials = study.get_trials(deepcopy=False)
    except Exception as error:  # SQLAlchemy's and the driver's own
        raise cannot_open(storage, error) from error
    before = study.user_attrs.get(SEARCH)
    if search is not None and before is not None and before != search and _has_begun(trials):
        raise ConfigError(
            [
                f"hydra.sweeper.study_name: the study '{name}' of {storage} is of another search: "
                f"{told(before)}; this one is {told(dict(search))}. Choose another "
                "hydra.sweeper.study_name."
            ]
        )
    return _standing(trials, str(Path(directory).resolve()))


def cannot_open(storage: Any, error: Exception) -> ConfigError:
    """Say that the database of a study cannot be opened."""
    why = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return ConfigError(
        [
            "hydra.sweeper.storage: expected the address of a database with Optuna's studies, such "
            f"as sqlite:///study.db, got {storage}, which cannot be opened ({why})."
        ]
    )


def keep_search(study: Any, config: Any) -> None:
    """Write into a study which search it is of; one of which nothing came may become another.

    Args:
        study: The study of Optuna.
        config: The config of the sweep.
    """
    search = _search(config)
    if study.user_attrs.get(SEARCH) != search and not _has_begun(study.get_trials(deepcopy=False)):
        study.set_user_attr(SEARCH, search)


def _search(config: Any) -> dict[str, Any]:
    sweep = sweep_of(config)
    return {**sweep, "overrides": [w for w in sweep["overrides"] if not w.startswith(OF_THE_PLACE)]}


def _has_begun(trials: Sequence[Any]) -> bool:
    """Whether a trial is more than a proposal that failed."""
    from optuna.trial import TrialState

    return any(trial.state is not TrialState.FAIL for trial in trials)


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
