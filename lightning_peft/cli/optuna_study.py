"""Optuna with a storage: a study that was interrupted goes on instead of beginning again.

Optuna's sweeper for Hydra adds ``n_trials`` to whatever the study in the storage holds, and numbers
its jobs from 0 again. Here the trials that are done are counted, and the jobs of a later start get
directories of their own. Without a storage nothing of this is needed: a seeded sampler proposes the
same trials again, and those that are done are not run again.
"""

from __future__ import annotations

from typing import Any

__all__ = ["go_on_with_study"]


def go_on_with_study(config: Any) -> int:
    """Fit the config of a sweep to what its study holds; changes nothing for other sweepers.

    Args:
        config: The config of the sweep; ``hydra.sweeper`` and ``hydra.sweep.subdir`` are changed.

    Returns:
        The number of trials that are done.
    """
    from omegaconf import open_dict, read_write

    sweeper = config.hydra.sweeper
    storage, name = sweeper.get("storage"), sweeper.get("study_name")
    if "n_trials" not in sweeper or storage is None or name is None:
        return 0
    import optuna
    from optuna.trial import TrialState

    if name not in {study.study_name for study in optuna.get_all_study_summaries(storage)}:
        return 0
    study = optuna.load_study(study_name=name, storage=storage)
    trials = study.get_trials(deepcopy=False)
    for trial in trials:
        if trial.state is TrialState.RUNNING:  # its process was killed
            study.tell(trial.number, state=TrialState.FAIL)
    done = sum(trial.state is TrialState.COMPLETE for trial in trials)
    if trials:
        with read_write(config), open_dict(config):
            sweeper.n_trials = max(sweeper.n_trials - done, 0)
            # literally: the rest of the name is resolved for each job
            subdir = config.hydra.sweep._get_node("subdir")._value()
            config.hydra.sweep.subdir = f"after{len(trials)}_{subdir}"
            if sweeper.sampler.get("seed") is not None:  # or the first proposals come again
                sweeper.sampler.seed += len(trials)
    return done
