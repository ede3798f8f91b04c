"""Translate a search space from Hydra's syntax into Optuna's distributions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning_peft.cli.config.errors import ConfigError

__all__ = ["grid_of", "overrides_of", "proposals_of", "space_of"]

TRIES = 20


def space_of(words: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the search space, and the overrides that are the same in every trial.

    Args:
        words: Overrides: those of the sweeper's config, then those that were typed. The last one
            of a key counts.

    Returns:
        Optuna's distribution of each parameter, and the override of each key that is fixed.

    Raises:
        ConfigError: With every parameter that cannot be searched.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    space: dict[str, Any] = {}
    fixed: dict[str, str] = {}
    problems = []
    for override in OverridesParser.create().parse_overrides(list(words)):
        name = override.get_key_element()
        space.pop(name, None)
        fixed.pop(name, None)
        if not override.is_sweep_override():
            bare = override.is_delete() and override.value() is None
            fixed[name] = name if bare else f"{name}={override.get_value_element_as_str()}"
            continue
        try:
            space[name] = _distribution(override)
        except ValueError as error:  # Optuna's own words, such as of a low above the high
            problems.append(
                f"hydra.sweeper.params: {override.input_line} cannot be searched ({error}). "
                "Expected such as choice(a,b), range(1,5), interval(0,1), tag(log,interval(1,9))."
            )
    if problems:
        raise ConfigError(problems)
    return space, fixed


def _distribution(override: Any) -> Any:
    """Build Optuna's distribution of a parameter."""
    from hydra.core.override_parser.types import ChoiceSweep, RangeSweep, Transformer
    from optuna import distributions as optuna

    value = override.value()
    if override.is_interval_sweep():
        whole = isinstance(value.start, int) and isinstance(value.end, int)
        made = optuna.IntDistribution if whole else optuna.FloatDistribution
        return made(value.start, value.end, log="log" in value.tags)
    if not isinstance(value, ChoiceSweep | RangeSweep):
        raise ValueError("it does not list its values")
    values = list(override.sweep_iterator(transformer=Transformer.encode))
    if not values:
        raise ValueError("it has no values")
    if not isinstance(value, RangeSweep) or value.shuffle:
        return optuna.CategoricalDistribution(values)
    whole = all(isinstance(own, int) for own in values)
    made = optuna.IntDistribution if whole else optuna.FloatDistribution
    return made(min(values), max(values), step=abs(value.step))


def overrides_of(params: Mapping[str, Any], fixed: Mapping[str, str]) -> tuple[str, ...]:
    """Return the overrides of a trial.

    Args:
        params: Its parameters.
        fixed: The fixed overrides of :func:`space_of`.
    """
    spelt = {name: "null" if value is None else value for name, value in params.items()}
    return (*(f"{name}={value}" for name, value in spelt.items()), *fixed.values())


def grid_of(space: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    """Return the values of each parameter, all combinations of which are the grid.

    Args:
        space: The result of :func:`space_of`, without intervals.
    """
    return {
        name: getattr(own, "choices", None)
        or [own.low + step * own.step for step in range(round((own.high - own.low) / own.step) + 1)]
        for name, own in space.items()
    }


def proposals_of(space: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a few of the proposals that a space allows, each value of a parameter early on.

    Args:
        space: The result of :func:`space_of`.
    """
    # a config composes or not by its groups and its keys; of a number one value says as much as all
    values = {name: list(getattr(own, "choices", None) or [own.low]) for name, own in space.items()}
    most = max(map(len, values.values()), default=1)
    diagonal = ([own[i % len(own)] for own in values.values()] for i in range(most))
    seen = []
    for proposal in itertools.chain(diagonal, itertools.product(*values.values())):
        if list(proposal) not in seen:
            seen.append(list(proposal))
            yield dict(zip(values, proposal, strict=True))
        if len(seen) >= TRIES:
            return
