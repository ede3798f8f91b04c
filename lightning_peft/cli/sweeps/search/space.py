"""What a search searches: its parameters, as Hydra's Optuna plugin reads them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra_plugins.hydra_optuna_sweeper import _impl as plugin

__all__ = ["grid_of", "proposals_of", "space_of"]

TRIES = 20


def space_of(
    words: Sequence[str], more: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what is searched, and what is the same in every trial.

    Args:
        words: Overrides: those of the sweeper's config, then those that were typed.
        more: Distributions that are no overrides; an override takes their place.

    Returns:
        Optuna's distribution of each parameter, and the value of each that is fixed.
    """
    found, fixed = plugin.create_params_from_overrides(list(words))
    space = {**(more or {}), **found}
    return {name: own for name, own in space.items() if name not in fixed}, fixed


def grid_of(space: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    """List the values of each parameter, all combinations of which are the grid.

    Args:
        space: As :func:`space_of` gives it.

    Raises:
        ValueError: If a parameter has no list of values.
    """
    choices: Any = plugin.OptunaSweeperImpl._to_grid_sampler_choices
    return {name: choices(None, own) for name, own in space.items()}


def proposals_of(space: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a few of the proposals that a space allows, each value of a parameter early on.

    Args:
        space: As :func:`space_of` gives it.
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
