"""Connect a job to its trial in the study of a search.

A job may run in its own process or on another machine, and so do its other ranks. Therefore the
facts about its trial are in the environment: the address of the study, the trial's number, and the
pruner.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lightning_peft.cli.config.objectives import directions_of
from lightning_peft.cli.runs.storage import open_storage, whole_address

__all__ = ["ENVIRONMENT", "NO_PRUNER", "Trial", "trial_of"]

ENVIRONMENT = "LIGHTNING_PEFT_TRIAL"
NO_PRUNER = "optuna.pruners.NopPruner"


@dataclass(frozen=True)
class Trial:
    """A trial of a search, as its job knows it.

    Attributes:
        number: Its number in the study, which is also the number of the job.
        study: The study's name.
        storage: The address of the storage; ``None`` if the study is kept in memory.
        pruner: The config of the pruner; ``None`` if nothing is pruned.
        directions: ``"maximize"`` or ``"minimize"``, for each objective.
    """

    number: int
    study: str | None = None
    storage: str | None = None
    pruner: Mapping[str, Any] | None = None
    directions: tuple[str, ...] = ()

    def written(self) -> str:
        """Return the trial as the value of an environment variable."""
        return json.dumps(asdict(self))

    @classmethod
    def of_environment(cls) -> Trial | None:
        """Return the trial of this process; ``None`` if it has none."""
        text = os.environ.get(ENVIRONMENT)
        if not text:
            return None
        read = json.loads(text)
        return cls(**{**read, "directions": tuple(read["directions"])})

    def report(self, value: float, step: int) -> bool:
        """Report a value to the study, and return whether the pruner would stop the trial.

        Args:
            value: The objective.
            step: The number of the validation, from 0, as Optuna's pruners count.

        Returns:
            Whether the pruner would stop it.
        """
        import optuna
        from hydra.utils import instantiate

        storage = open_storage(self.storage)
        study = optuna.load_study(
            study_name=self.study,
            storage=storage,
            sampler=optuna.samplers.RandomSampler(),  # any: it proposes nothing here
            pruner=instantiate(dict(self.pruner or {}), _convert_="all"),
        )
        number = storage.get_study_id_from_name(self.study), self.number
        trial = optuna.Trial(study, storage.get_trial_id_from_study_id_trial_number(*number))
        known = study.get_trials(deepcopy=False)[self.number].intermediate_values
        if step not in known:  # a run that went on says it again
            trial.report(value, step)
        return bool(trial.should_prune())


def trial_of(hydra: Any) -> Trial | None:
    """Return the trial of a job of a sweep.

    Args:
        hydra: The ``hydra`` part of the job's config.

    Returns:
        The trial; ``None`` if the sweep is not a search.
    """
    from omegaconf import OmegaConf

    sweeper: Any = OmegaConf.to_container(hydra.sweeper, resolve=True)
    if "n_trials" not in sweeper:
        return None
    storage, pruner = sweeper.get("storage"), sweeper.get("pruner")
    cwd = (hydra.get("runtime") or {}).get("cwd") or os.getcwd()
    prunes = pruner is not None and pruner.get("_target_") != NO_PRUNER
    return Trial(
        number=int(hydra.job.num),
        study=sweeper.get("study_name"),
        storage=whole_address(storage, cwd) if isinstance(storage, str) else None,
        pruner=pruner if prunes else None,
        directions=directions_of(sweeper.get("direction")),
    )
