"""Check the settings of a search that do not depend on its objectives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_peft.cli.config.check import target_problems
from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.runs.storage import earlier_study
from lightning_peft.cli.sweeps.record import swept, words_of
from lightning_peft.cli.sweeps.search.space import space_of
from lightning_peft.cli.sweeps.search.study import GRID

__all__ = ["wrong_settings"]

MAPPINGS = ("sampler", "pruner")


def wrong_settings(config: Any, sweeper: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the numbers of a search, its sampler, its pruner and its space.

    Args:
        config: The config of a sweep.
        sweeper: Its ``hydra.sweeper``, resolved, as plain types.

    Returns:
        A sentence for each problem.
    """
    from omegaconf import OmegaConf

    problems = []
    for name in ("n_trials", "n_jobs"):
        value = sweeper.get(name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            told = f"expected a whole number of at least 1, got {_shown(value)}."
            problems.append(f"hydra.sweeper.{name}: {told}")
    rate = sweeper.get("max_failure_rate", 0.0)
    if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 <= rate <= 1:
        told = f"expected a number from 0 to 1, got {_shown(rate)}."
        problems.append(f"hydra.sweeper.max_failure_rate: {told}")
    for name in MAPPINGS:
        value = sweeper.get(name)
        if value is not None and not isinstance(value, Mapping):
            problems.append(
                f"hydra.sweeper.{name}: expected a mapping with a _target_, got {_shown(value)}. "
                f"One that has a name is chosen with a slash: hydra/sweeper/{name}={value}."
            )
        else:
            said = {k: v for k, v in (value or {}).items() if v is not None}
            found = target_problems(said, f"hydra.sweeper.{name}")
            problems += [f"{key}: {text}" for key, text in found]
    place = OmegaConf.select(config, "hydra.sweep.dir")
    in_the_way = earlier_study(sweeper.get("storage"), None if place is None else Path(place))
    problems += [] if in_the_way is None else [in_the_way]
    if "search_space" in sweeper:
        problems.append(
            "hydra.sweeper.search_space: use hydra.sweeper.params instead. Write {type: float, "
            "low: 0, high: 1} as interval(0,1), and choices as choice(a,b)."
        )
    params = sweeper.get("params")
    if params is not None and not isinstance(params, Mapping):
        problems.append(
            "hydra.sweeper.params: expected a mapping with the search space, such as {lr: "
            f"'interval(1e-4, 1e-2)'}}, got {_shown(params)}."
        )
        return problems
    return problems + _wrong_space(config, sweeper)


def _wrong_space(config: Any, sweeper: Mapping[str, Any]) -> list[str]:
    try:
        space_of(words_of(config))
    except ConfigError as error:
        return list(error.problems)
    found = swept(config)
    if not found and not sweeper.get("custom_search_space"):
        return [
            "hydra.sweeper.params: expected a search space, got none, so every trial would be the "
            "same. Define it here or on the command line: 'lr=tag(log,interval(3e-4,3e-2))', "
            "'method=choice(lora,bitfit)'."
        ]
    sampler = sweeper.get("sampler")
    if isinstance(sampler, Mapping) and str(sampler.get("_target_")).endswith(GRID):
        return [
            f"hydra/sweeper/sampler: the grid tries every value, but {name} is an interval. Set "
            f"{name}=choice(...) or {name}=range(...), or choose tpe or random."
            for name, count in found.items()
            if count == 0
        ]
    return []


def _shown(value: Any) -> str:
    return "null" if value is None else repr(value)
