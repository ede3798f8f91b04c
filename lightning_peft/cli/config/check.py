"""Check a composed config before anything is built.

Hydra finds a wrong argument of a ``_target_`` when it calls it: the backbone after the data, the
trainer after both, a minute into a job and one at a time. Here all of them are compared with the
signatures first.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lightning_peft.cli.config.errors import ConfigError, missing_value, nodes, of_an_experiment
from lightning_peft.cli.config.proposals import ask_for_backbone
from lightning_peft.cli.config.schema import type_problems
from lightning_peft.cli.config.values import annotations_of, complaint
from lightning_peft.errors import near

__all__ = ["check_targets", "check_values", "target_problems"]

IMAGES = "lightning_peft.ImageClassifier"

_HYDRA_KEYS = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")


def check_values(cfg: DictConfig, known: frozenset[str]) -> dict[str, Any]:
    """Check everything that needs no import: missing values, interpolations, types, unknown keys.

    Args:
        cfg: The composed config of a job.
        known: The top-level keys that mean something.

    Returns:
        The config, resolved, as plain types.

    Raises:
        ConfigError: With every problem found.
    """
    # OmegaConf.missing_keys stops at the first interpolation of a missing value
    missing = [key for key, node in nodes(cfg) if node is not None and node._is_missing()]
    if missing:
        asked = cfg.get("model") is not None and cfg.model.get("_target_") == IMAGES
        raise ConfigError(
            [
                ask_for_backbone() if key == "model.backbone" and asked else missing_value(key)
                for key in missing
            ]
        )
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    # `+shots=4` without the experiment that reads it would change nothing
    strays = [(key, of_an_experiment(key)) for key in sorted(plain.keys() - known)]
    problems = [told for _, told in strays if told is not None]
    # `+width=3` may serve an interpolation; `+optimzer=sgd` is taken for a mistake
    problems += [
        f"unknown key '{key}'. {near(key, known)}"
        for key in sorted(plain.keys() - known)
        if difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    ]
    problems += type_problems(plain)
    if problems:
        raise ConfigError(problems)
    return plain


def check_targets(config: Mapping[str, Any]) -> None:
    """Check that every ``_target_`` of a config exists and takes these arguments and values.

    Args:
        config: The config, resolved, as plain types.

    Raises:
        ConfigError: With every problem found.
    """
    shortest: dict[str, str] = {}
    for key, text in target_problems(config):
        # a node that is interpolated into another (method into callbacks.peft) is one mistake
        if text not in shortest or len(key) < len(shortest[text]):
            shortest[text] = key
    if shortest:
        raise ConfigError([f"{key}: {text}" for text, key in shortest.items()])


def target_problems(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield ``(key, problem)`` for every ``_target_`` that cannot be called as it is written."""
    if isinstance(node, list):
        for position, item in enumerate(node):
            yield from target_problems(item, f"{key}[{position}]")
    if not isinstance(node, Mapping):
        return
    if "_target_" in node:
        for name, text in _call_problems(node):
            yield f"{key}.{name}", text
    for name, item in node.items():
        yield from target_problems(item, f"{key}.{name}" if key else str(name))


def _call_problems(node: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    target = str(node["_target_"])
    try:
        function = locate(target)
    except LookupError as error:
        yield "_target_", str(error.args[0])
        return
    try:
        parameters = inspect.signature(function).parameters
    except (ValueError, TypeError):  # built-in: nothing to hold the arguments against
        return
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = [name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD]
    annotations = annotations_of(function)
    for name, value in node.items():
        if name in _HYDRA_KEYS:
            continue
        if name in parameters and parameters[name].kind is not inspect.Parameter.VAR_KEYWORD:
            built = isinstance(value, Mapping) and "_target_" in value
            if name in annotations and not built:
                problem = complaint(value, annotations[name])
                if problem is not None:
                    yield name, problem
        elif not takes_any:
            yield name, f"{target} takes no '{name}'. {near(name, named)}"


def locate(target: str) -> Callable[..., Any]:
    """Return the class or function that a ``_target_`` names.

    Raises:
        LookupError: If there is no such thing; the message says which part is wrong.
    """
    parts = target.split(".")
    module, found = None, 0
    for position in range(len(parts), 0, -1):
        name = ".".join(parts[:position])
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and not name.startswith(error.name):
                raise LookupError(
                    f"{target} needs '{error.name}', which is not installed"
                ) from None
            continue
        found = position
        break
    if module is None:
        raise LookupError(f"there is no module '{parts[0]}' to import {target} from")
    thing: Any = module
    for position in range(found, len(parts)):
        try:
            thing = getattr(thing, parts[position])
        except AttributeError:
            where = ".".join(parts[:position])
            names = [name for name in dir(thing) if not name.startswith("_")]
            raise LookupError(
                f"{where} has no '{parts[position]}'. {near(parts[position], names)}"
            ) from None
        except ModuleNotFoundError as error:  # a lazy attribute
            raise LookupError(f"{target} needs '{error.name}', which is not installed") from None
    if not callable(thing):
        raise LookupError(f"expected a class or a function, got {target}, a {type(thing).__name__}")
    return thing
