"""Turn the groups of this package into structured configs, for other Hydra applications.

There no code of this package runs before the application instantiates the composed config, so Hydra
has to refuse a mistyped key or value itself. It does so where a node has a schema, and its message
contains the name of the schema: therefore that name lists the keys that exist.
"""

from __future__ import annotations

import types
from dataclasses import field, make_dataclass
from typing import Any, Optional, Union, get_args, get_origin, get_type_hints

from omegaconf import Container, DictConfig, OmegaConf

from lightning_peft.cli.config.schema import Method, Schedule, is_ours

__all__ = ["structured"]

PLAIN = (bool, int, float, str)

SCHEMAS = {"method": Method, "schedule": Schedule}
"""The types of the keys of a group."""


def structured(config: Container, group: str) -> Container:
    """Add a schema to the nodes of a config that build something.

    The schema is of the keys that the choice has. ``hf``, whose keys are the tuner's, and what
    other packages build stay open.

    Args:
        config: What was read from the choice's file.
        group: The group, such as ``"method"``.

    Returns:
        The config; a node of it with a ``_target_`` of this package takes no other keys, and no
        values of other types.
    """
    if not isinstance(config, DictConfig):
        return config
    if is_ours(config.get("_target_")):
        return _closed(config, SCHEMAS[group])
    node = config.get(group)
    if isinstance(node, DictConfig) and is_ours(node.get("_target_")):
        config = config.copy()
        config[group] = _closed(node, SCHEMAS[group])
    return config


def _closed(node: DictConfig, schema: type) -> DictConfig:
    hints = get_type_hints(schema)
    keys = [str(key) for key in node if not str(key).startswith("_")]
    typed = [(key, _type(hints.get(key, Any)), field(default="???")) for key in keys]
    title = str(node._target_).rpartition(".")[2]
    name = f"{title} (keys: {', '.join(keys)})" if keys else f"{title} (no keys)"
    made = make_dataclass(name.replace(" ", "_"), [("_target_", str, field(default="???")), *typed])
    made.__name__ = name  # make_dataclass takes identifiers alone
    merged = OmegaConf.merge(OmegaConf.structured(made), node)
    assert isinstance(merged, DictConfig)
    return merged


def _type(annotation: Any) -> Any:
    """Return the annotation for OmegaConf: a plain type, an optional one, or anything."""
    if annotation in PLAIN:
        return annotation
    if get_origin(annotation) in (Union, types.UnionType):
        parts = [part for part in get_args(annotation) if part is not type(None)]
        if len(parts) == 1 and parts[0] in PLAIN:
            return Optional[parts[0]]  # noqa: UP045  made at run time
    return Any
