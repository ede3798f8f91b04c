"""Read the study of a search: which of its trials are finished, and what a later start has to do.

A trial whose process was killed still counts as running in the study. It is run again under its own
number, in its own directory, where it resumes from its last checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.config.objectives import directions_of
from lightning_peft.cli.runs.storage import cannot_open, file_of, open_storage
from lightning_peft.cli.sweeps.record import Standing, sweep_of, told, words_of

__all__ = ["GRID", "PLACE", "keep_search", "prepare_search", "standing_among", "standing_of"]

PLACE = "lightning_peft_sweep"
"""The attribute of a trial with the directory of its sweep."""

SEARCH = "lightning_peft_search"
"""The attribute of a study that identifies its search."""

OF_THE_PLACE = ("data.root=", "output_dir=", "name=", "logger=", "logger.")
"""Overrides that may differ between machines that share one search."""

GRID = ".GridSampler"
"""The end of the name of the sampler that tries every value."""


def prepare_search(config: Any) -> Standing | None:
    """Adapt the config of a sweep to the state of its study; leave other sweepers unchanged.

    Args:
        config: The config of the sweep; ``hydra.sweeper`` is changed.

    Returns:
        The state of the study, or ``None`` if the sweep is not a search.
    """
    from omegaconf import open_dict, read_write

    sweeper = config.hydra.sweeper
    if "n_trials" not in sweeper:
        return None
    ways = directions_of(sweeper.get("direction"))
    place = config.hydra.sweep.dir
    standing = standing_of(
        sweeper.get("storage"), sweeper.get("study_name"), place, _search(config), ways
    )
    sampler: Any = sweeper.get("sampler") or {}
    with read_write(config), open_dict(config):
        if str(sampler.get("_target_")).endswith(GRID):
            from lightning_peft.cli.sweeps.search.space import grid_of, space_of

            grid = grid_of(space_of(words_of(config))[0])
            sweeper.n_trials = min(sweeper.n_trials, math.prod(map(len, grid.values())))
        if "seed" in sampler:  # without trials it proposes the same again, with them something else
            sampler.seed = (sampler.seed or 0) + standing.trials
        for key in [key for key, value in sampler.items() if value is None]:
            del sampler[key]  # null leaves a setting to Optuna
        # the jobs compose their config anew, and have to hear what was settled
        if ways:
            word = ways[0] if len(ways) == 1 else f"[{','.join(ways)}]"
            config.hydra.overrides.hydra.append(f"++hydra.sweeper.direction={word}")
    return standing


def standing_of(
    storage: Any,
    name: str | None,
    directory: str | Path,
    search: Mapping[str, Any] | None = None,
    directions: Sequence[str] = (),
) -> Standing:
    """Return the state of a study, without creating it.

    Args:
        storage: As ``hydra.sweeper.storage``.
        name: The study's name.
        directory: The directory of the sweep.
        search: The search that it must belong to, as :func:`keep_search` records it.
        directions: The directions that it must have.

    Raises:
        ConfigError: If the study cannot be read, or has another search or other directions.
    """
    if not isinstance(storage, str) or name is None:
        return Standing()
    file = file_of(storage)
    if file is not None and not file.is_file():
        return Standing()
    import optuna

    opened = open_storage(storage)
    try:
        study = optuna.load_study(study_name=name, storage=opened)
        trials = study.get_trials(deepcopy=False)
    except KeyError:
        return Standing()
    except Exception as error:
        raise cannot_open(storage, error) from error
    if search is not None:
        _check(study, storage, search, directions)
    return standing_among(trials, directory, file)


def keep_search(study: Any, config: Any) -> None:
    """Record the search of a study; a study without results may be reused for another search.

    Args:
        study: The study of Optuna.
        config: The config of the sweep.

    Raises:
        ConfigError: If the study belongs to another search or has other directions.
    """
    search, sweeper = _search(config), config.hydra.sweeper
    _check(study, sweeper.get("storage"), search, directions_of(sweeper.get("direction")))
    if study.user_attrs.get(SEARCH) != search and not _has_begun(study.get_trials(deepcopy=False)):
        study.set_user_attr(SEARCH, search)


def _check(study: Any, storage: Any, search: Mapping[str, Any], directions: Sequence[str]) -> None:
    """Refuse the study of another search."""
    told_of = f"the study '{study.study_name}' of {storage}"
    another = "Choose another hydra.sweeper.study_name."
    problems = []
    before = study.user_attrs.get(SEARCH)
    if before not in (None, search) and _has_begun(study.get_trials(deepcopy=False)):
        problems.append(
            f"hydra.sweeper.study_name: {told_of} belongs to another search: {told(before)}; this "
            f"one is {told(dict(search))}. {another}"
        )
    has = [direction.name.lower() for direction in study.directions]
    if directions and has != list(directions):
        problems.append(
            f"hydra.sweeper.direction: {told_of} has the direction {' and '.join(has)}, got "
            f"{' and '.join(directions)}. {another}"
        )
    if problems:
        raise ConfigError(problems)


def _search(config: Any) -> dict[str, Any]:
    sweep = sweep_of(config)
    return {**sweep, "overrides": [w for w in sweep["overrides"] if not w.startswith(OF_THE_PLACE)]}


def _has_begun(trials: Sequence[Any]) -> bool:
    """Whether a trial is more than a failed proposal."""
    from optuna.trial import TrialState

    return any(trial.state is not TrialState.FAIL for trial in trials)


def standing_among(
    trials: Sequence[Any], directory: str | Path, file: Path | None = None
) -> Standing:
    """Return the state of a study according to its trials.

    Args:
        trials: All of its trials.
        directory: The directory of the sweep.
        file: The file of the study, if it has one.
    """
    from optuna.trial import TrialState

    place = Path(directory).resolve()
    done = sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)
    interrupted = tuple(
        trial.number
        for trial in trials
        if trial.state is TrialState.RUNNING and _is_of(trial, place, file)
    )
    return Standing(len(trials), done, interrupted)


def _is_of(trial: Any, place: Path, file: Path | None) -> bool:
    """Whether a trial is one of the sweep in a directory, which may have been moved or copied.

    Args:
        trial: The trial, which has the directory of its sweep when it began.
        place: The directory.
        file: The file of the study, if it has one.
    """
    recorded = trial.user_attrs.get(PLACE)
    if recorded is None or recorded == str(place):
        return recorded is not None
    if file is None or not file.resolve().is_relative_to(place):
        return False  # a study that several sweeps may share
    if not any(place.glob(f"{trial.number}_*/")):
        return False  # its job is elsewhere: a sweep of another directory shares this study
    # moved away from there, or a copy whose original has a study of its own
    inside = file.resolve().relative_to(place)
    return not Path(recorded).is_dir() or (Path(recorded) / inside).is_file()
