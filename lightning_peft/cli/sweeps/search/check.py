"""Check a search before its first job starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.config.objectives import (
    MONITORED,
    better,
    chosen_by,
    directions_of,
    names_of,
    unknown_objective,
)
from lightning_peft.cli.config.task import of_the_test_set
from lightning_peft.cli.runs.trial import NO_PRUNER
from lightning_peft.cli.sweeps.search.settings import wrong_settings
from lightning_peft.errors import require
from lightning_peft.evaluation.metric_names import is_test

__all__ = ["check_search"]

WAYS = ("maximize", "minimize")
NOT_SEVERAL = ("CmaEsSampler",)
"""Samplers of Optuna that can handle only one objective."""


def check_search(config: Any) -> None:
    """Check the objectives of a search, and set their directions if the config does not.

    Args:
        config: The config of a sweep; ``hydra.sweeper.direction`` is filled in.

    Raises:
        ConfigError: With every problem found. Sweeps that are not searches have none.
    """
    from omegaconf import OmegaConf, open_dict, read_write

    if not OmegaConf.is_dict(config.hydra.sweeper):
        raise ConfigError(
            [
                f"hydra.sweeper: expected a mapping, got {config.hydra.sweeper!r}. A sweeper is "
                "chosen with a slash: hydra/sweeper=search; left out, the values that are typed "
                "with commas are run."
            ]
        )
    objective = config.get("objective")
    if not (objective is None or isinstance(objective, str) or OmegaConf.is_list(objective)):
        raise ConfigError(
            [f"objective: expected a name, a list of names or null, got {objective!r}."]
        )
    sweeper: Any = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
    names = names_of(objective)
    if "n_trials" not in sweeper:
        if len(names) > 1:
            raise ConfigError(
                [
                    f"objective: expected one name, got {len(names)}: several are for a search, "
                    "-m experiment=optuna."
                ]
            )
        return
    require("optuna", "sweep")
    directions = directions_of(sweeper.get("direction"))
    problems = [*_wrong_names(config, names), *_wrong_directions(names, directions)]
    problems += [*wrong_settings(config, sweeper), *_wrong_pruner(sweeper, names)]
    sampler = str(_mapping(sweeper.get("sampler")).get("_target_"))
    if len(names) > 1 and sampler.endswith(NOT_SEVERAL):
        problems.append(
            f"hydra/sweeper/sampler: {sampler} takes only one objective, got {len(names)}. "
            "Choose nsgaii, tpe or random."
        )
    if problems:
        raise ConfigError(problems)
    if not directions:
        with read_write(config), open_dict(config):
            found = [better(name) for name in names] or [chosen_by(config)[1]]
            config.hydra.sweeper.direction = found if len(found) > 1 else found[0]


def _wrong_names(config: Any, names: Sequence[str]) -> list[str]:
    target = str((config.get("model") or {}).get("_target_", ""))
    told = [unknown_objective(name, target.startswith("lightning_peft.")) for name in names]
    problems = [problem for problem in told if problem is not None]
    if len(set(names)) < len(names):
        problems.append(f"objective: expected each name once, got {', '.join(names)}.")
    if not config.get("allow_test_objective"):
        problems += [of_the_test_set(name) for name in names if is_test(name)]
    monitored = [name for name in names if name in MONITORED]
    if monitored and not _is_monitored(config):
        problems.append(
            f"objective: {' and '.join(monitored)} {'is' if len(monitored) == 1 else 'are'} "
            "measured by lightning_peft.EfficiencyMonitor, and the config has none. Keep "
            "callbacks.efficiency, or choose another objective."
        )
    return problems


def _is_monitored(config: Any) -> bool:
    """Whether the costs may be measured; a user's own callback may be a monitor, too."""
    nodes = [_mapping(node) for node in _mapping(config.get("callbacks")).values()]
    targets = [str(node.get("_target_", "")) for node in nodes]
    return any(
        target.endswith("EfficiencyMonitor") or not target.startswith("lightning")
        for target in filter(None, targets)
    )


def _wrong_directions(names: Sequence[str], directions: Sequence[str]) -> list[str]:
    problems = [
        f"hydra.sweeper.direction: expected maximize or minimize, got '{word}'."
        for word in directions
        if word not in WAYS
    ]
    expected = max(len(names), 1)
    if directions and len(directions) != expected:
        problems.append(
            f"hydra.sweeper.direction: expected {expected}, one for each objective, got "
            f"{len(directions)}. By default it is the better direction of each: "
            f"[{', '.join(map(better, names)) or 'maximize'}]."
        )
    return problems


def _wrong_pruner(sweeper: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    pruner = _mapping(sweeper.get("pruner"))
    if pruner.get("_target_", NO_PRUNER) == NO_PRUNER:
        return []
    problems = []
    if len(names) > 1:
        problems.append(
            "hydra/sweeper/pruner: Optuna prunes by one objective, got "
            f"{len(names)}: {', '.join(names)}. Leave the pruner out, or name one objective."
        )
    elif names and not names[0].startswith("val/"):
        problems.append(
            "hydra/sweeper/pruner: expected an objective that each validation measures, never one "
            f"of the test set, such as objective=val/accuracy, got '{names[0]}'."
        )
    if not isinstance(sweeper.get("storage"), str) or not sweeper.get("study_name"):
        problems.append(
            "hydra/sweeper/pruner: jobs access the study through its file or database, so a pruner "
            "needs hydra.sweeper.storage and hydra.sweeper.study_name."
        )
    return problems


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
