"""``sweep.json``: which sweep a directory holds, so that the same one goes on and no other does."""

from __future__ import annotations

import json
import math
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_peft.cli.errors import ConfigError

if TYPE_CHECKING:
    from lightning_peft.cli.search.study import Standing

__all__ = [
    "FILE",
    "check_directory",
    "count_jobs",
    "describe",
    "quoted",
    "read_arguments",
    "swept",
    "told",
]

FILE = "sweep.json"
FORMAT = 1

OF_THE_PLACE = ("hydra.mode=", "hydra.sweep.dir=")
"""Overrides that say that it is a sweep, and where."""


def check_directory(directory: Path, record: dict[str, Any]) -> None:
    """Refuse the directory of another sweep.

    Args:
        directory: The directory of the sweep.
        record: As :func:`describe` gives it.

    Raises:
        ConfigError: If the directory holds another sweep.
    """
    path = directory / FILE
    if not path.is_file():
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    if any(before.get(key) != record[key] for key in ("overrides", "params")):
        raise ConfigError(
            [
                f"{directory} holds another sweep: {told(before)}; this one is {told(record)}. "
                "To go on with that one: lightning-peft continue "
                f"{shlex.quote(str(directory))}. Otherwise choose another hydra.sweep.dir."
            ]
        )


def read_arguments(directory: Path) -> list[str]:
    """Write the flags and overrides that go on with the sweep in a directory.

    Args:
        directory: The directory of a sweep.

    Raises:
        ConfigError: If it holds none.
    """
    try:
        record = json.loads((directory / FILE).read_text(encoding="utf-8"))
        words = [*record["flags"], "-m", *record["overrides"], *record["hydra"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            [
                f"expected the directory of a sweep with a {FILE}, got {directory} "
                f"({type(error).__name__}). A single run is gone on with by "
                "resume=DIR/checkpoints/last.ckpt."
            ]
        ) from error
    return [*words, f"hydra.sweep.dir={quoted(str(directory))}"]


def quoted(text: str) -> str:
    """Write a string as a value that Hydra takes as it is."""

    def escaped(match: re.Match[str]) -> str:  # a backslash means itself, except before a quote
        return 2 * match[1] + ("\\'" if match[2] else "")

    return "'" + re.sub(r"(\\*)('|$)", escaped, text) + "'"


def swept(config: Any) -> dict[str, int]:
    """Find what a sweep sweeps over.

    Args:
        config: The config of the sweep.

    Returns:
        The number of values of each key; 0 where the sweeper decides as it goes.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    params = config.hydra.sweeper.get("params") or {}
    words = [f"{key}={value}" for key, value in params.items()]
    found: dict[str, int] = {}
    for override in OverridesParser.create().parse_overrides([*words, *_overrides(config)]):
        key = override.get_key_element()
        found.pop(key, None)  # what is typed takes the place of what the config sweeps over
        if override.is_sweep_override():
            discrete = override.is_discrete_sweep()
            found[key] = sum(1 for _ in override.sweep_string_iterator()) if discrete else 0
    return found


def count_jobs(config: Any, standing: Standing | None = None) -> int | None:
    """Count the jobs of a sweep.

    Args:
        config: The config of the sweep.
        standing: How the study of a search stands.

    Returns:
        The number; ``None`` where the sweeper decides as it goes and does not say.
    """
    sweeper = config.hydra.sweeper
    if standing is not None:
        return standing.jobs(int(sweeper.n_trials))
    if not str(sweeper.get("_target_", "")).endswith((".BasicSweeper", ".OrderedSweeper")):
        return None
    return math.prod(swept(config).values())


def _overrides(config: Any) -> list[str]:
    return [str(word) for word in config.hydra.overrides.task]


def describe(config: Any) -> dict[str, Any]:
    """Say which sweep it is.

    Args:
        config: The config of the sweep, its ``hydra`` part included.

    Returns:
        What ``sweep.json`` holds.
    """
    from omegaconf import OmegaConf

    hydra = config.hydra
    params: Any = hydra.sweeper.get("params")
    sources = [s.path for s in hydra.runtime.config_sources if s.provider == "command-line"]
    flags = [word for path in sources for word in ("--config-dir", str(path))]
    return {
        "format": FORMAT,
        "overrides": _overrides(config),
        "params": OmegaConf.to_container(params, resolve=True) if params else {},
        "hydra": [str(w) for w in hydra.overrides.hydra if not str(w).startswith(OF_THE_PLACE)],
        "flags": flags,
    }


def told(record: dict[str, Any]) -> str:
    """Write what a sweep is of, in quotes."""
    params = [f"{key}={value}" for key, value in (record.get("params") or {}).items()]
    return f"'{' '.join([*params, *record.get('overrides', [])])}'"
