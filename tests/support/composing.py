"""Hydra composes the same choices of the shipped configs once in a process.

Tests compose some thousand configs, most of them of a few choices (``model=timm data=digits ...``)
and different values. Which files that takes, and what they say together, is the same each time;
values are still put in by Hydra. Configs of a test's own directory are composed anew.
"""

import functools
import pickle

from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.defaults_list import DefaultsList, Overrides

from lightning_peft.cli.config.conf_source import ConfSource
from lightning_peft.cli.config.paths import conf_dir

OURS = (f"{ConfSource.scheme()}://", f"lightning-peft://{conf_dir()}", "structured://")


def install():
    """Let Hydra keep what it has composed, until the process ends."""
    if config_loader_impl.create_defaults_list is _defaults_list:
        return
    config_loader_impl.create_defaults_list = _defaults_list
    ConfigLoaderImpl._compose_config_from_defaults_list = _composed


_real_defaults_list = config_loader_impl.create_defaults_list
_real_composed = ConfigLoaderImpl._compose_config_from_defaults_list
_lists, _configs = {}, {}


def _sources(repo):
    """Return the places of a search path, or ``None`` if a test may have written there."""
    places = tuple(source.full_path() for source in repo.get_sources())
    return places if all(place.startswith(OURS) for place in places) else None


@functools.wraps(_real_defaults_list)
def _defaults_list(repo, config_name, overrides_list, prepend_hydra, skip_missing):
    overrides = Overrides(repo=repo, overrides_list=overrides_list)
    values = {id(override) for override in overrides.config_overrides}
    choices = tuple(
        override.input_line
        for override in overrides_list
        if id(override) not in values and not override.is_sweep_override()
    )
    key = (_sources(repo), config_name, choices, prepend_hydra, skip_missing)
    if key[0] is None or key not in _lists:
        found = _real_defaults_list(repo, config_name, overrides_list, prepend_hydra, skip_missing)
        if key[0] is not None:
            known = found.overrides.known_choices, found.overrides.known_choices_per_group
            _lists[key] = pickle.dumps((found.defaults, found.defaults_tree, known))
        return found
    defaults, tree, (overrides.known_choices, overrides.known_choices_per_group) = pickle.loads(
        _lists[key]
    )
    return DefaultsList(defaults, tree, overrides.config_overrides, overrides)


@functools.wraps(_real_composed)
def _composed(self, defaults, repo):
    key = (_sources(repo), repr(defaults))
    if key[0] is None:
        return _real_composed(self, defaults, repo)
    if key not in _configs:
        _configs[key] = pickle.dumps(_real_composed(self, defaults, repo))
    return pickle.loads(_configs[key])
