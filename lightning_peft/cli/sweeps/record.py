"""Read and check ``sweep.json``, which records the sweep that a directory holds."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.runs.summary import FILE as SUMMARY
from lightning_peft.cli.sweeps.moved import in_place
from lightning_peft.errors import PEFTError
from lightning_peft.files.plain_file import NotPlainError, read_text

__all__ = [
    "FILE",
    "Standing",
    "arguments_of",
    "check_directory",
    "check_kind",
    "count_jobs",
    "describe",
    "quoted",
    "read_arguments",
    "read_record",
    "sweep_of",
    "swept",
    "to_continue",
    "told",
    "what_to_do",
    "words_of",
]

FILE = "sweep.json"
FORMAT = 1
CONFIG_NAME = "config"
"""The config of a command line that names none."""

OF_THE_PLACE = ("hydra.mode=", "hydra.sweep.dir=")
"""Overrides that say that it is a sweep, and where."""


def check_directory(directory: Path, record: dict[str, Any]) -> None:
    """Refuse the directory of another sweep.

    Args:
        directory: The directory of the sweep.
        record: The result of :func:`describe`.

    Raises:
        ConfigError: If the directory holds another sweep.
    """
    before = read_record(directory)
    if before is not None and any(before.get(k) != record[k] for k in ("overrides", "params")):
        raise ConfigError(
            [
                f"{directory} holds another sweep: {told(before)}; this one is {told(record)}. "
                f"{what_to_do(directory)}"
            ]
        )


def read_record(directory: Path) -> dict[str, Any] | None:
    """Return the record of the sweep in a directory; ``None`` if it holds none.

    Args:
        directory: The directory of a sweep.

    Raises:
        ConfigError: If its file cannot be read, or the directory holds a single run.
    """
    path = directory / FILE
    try:
        record = json.loads(read_text(path))
        if not isinstance(record["overrides"], list):
            raise TypeError("overrides")
    except FileNotFoundError:
        if (directory / SUMMARY).is_file():  # which a single run leaves, and a sweep does not
            raise ConfigError(
                [
                    f"{directory} holds a single run, but a sweep needs its own directory. Choose "
                    "another hydra.sweep.dir."
                ]
            ) from None
        return None
    except (AttributeError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            [
                f"{path} does not say which sweep {directory} holds ({type(error).__name__}): it "
                "is cut off, or another program wrote it. Choose another hydra.sweep.dir; or, if "
                "the jobs there are those of this sweep, delete the file: each job records its own "
                "config."
            ]
        ) from error
    return in_place(record, directory)


def check_kind(directory: Path, record: dict[str, Any]) -> None:
    """Refuse a search in the directory of a plain sweep, and the other way around.

    Args:
        directory: The directory of the sweep.
        record: The result of :func:`describe`.

    Raises:
        ConfigError: If the directory holds the other kind.
    """
    before = read_record(directory)
    kind = None if before is None else _kind(before)
    if before is None or kind in (None, record["sweeper"]):
        return
    kinds = {"search": "a search", "plain": "a plain sweep"}
    raise ConfigError(
        [
            f"{directory} holds {kinds.get(str(kind), kind)}, {told(before)}; this one is "
            f"{kinds[record['sweeper']]}, {told(record)}. {what_to_do(directory)}"
        ]
    )


def _kind(record: dict[str, Any]) -> str | None:
    """Return the kind of sweep that a record describes; ``None`` if an older release wrote none."""
    if record.get("sweeper") is not None:
        return str(record["sweeper"])
    words = [str(word).lstrip("+") for word in record.get("hydra") or []]
    chosen = [word.partition("=")[2] for word in words if word.startswith("hydra/sweeper=")]
    if chosen:
        return "plain" if chosen[-1] == "basic" else "search"
    # an experiment may bring a search along
    brought = [word for word in record["overrides"] if str(word).startswith("experiment=")]
    return None if brought else "plain"


def what_to_do(directory: Path) -> str:
    """Return what to do if a directory holds another sweep."""
    return (
        f"To resume that one: {to_continue(directory)}. Otherwise choose another hydra.sweep.dir."
    )


def read_arguments(directory: Path) -> dict[str, list[str]]:
    """Return the flags and overrides that a directory records of its sweep; they are not checked.

    Args:
        directory: The directory of a sweep.

    Returns:
        Lists of words under ``flags``, ``overrides`` and ``hydra``.

    Raises:
        ConfigError: If it holds no sweep.
    """
    try:
        record = in_place(json.loads(read_text(directory / FILE)), directory)
        found = {part: record[part] for part in ("flags", "overrides", "hydra")}
        for part, words in found.items():
            if not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
                raise TypeError(part)
    except NotPlainError:
        raise
    except (AttributeError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            [
                f"expected the directory of a sweep with a {FILE}, got {directory} "
                f"({type(error).__name__}). To resume a single run: "
                "resume=DIR/checkpoints/last.ckpt."
            ]
        ) from error
    return found


def arguments_of(record: dict[str, list[str]], directory: Path) -> list[str]:
    """Return the command line that resumes a sweep.

    Args:
        record: The result of :func:`read_arguments`, checked.
        directory: The directory of the sweep.
    """
    place = f"hydra.sweep.dir={quoted(str(directory))}"
    return [*record["flags"], "-m", *record["overrides"], *record["hydra"], place]


def to_continue(directory: Path) -> str:
    """Return the command that resumes the sweep in a directory, with its directories of configs."""
    words = ["lightning-peft", "continue", shlex.quote(str(directory))]
    with suppress(ConfigError, PEFTError):  # the command itself says what is wrong
        flags = read_arguments(directory)["flags"]
        for flag, value in pairwise(flags):
            words += [flag, shlex.quote(value)] if flag == "--config-dir" else []
    return " ".join(words)


def quoted(text: str) -> str:
    """Return a string quoted as a value for Hydra."""

    def escaped(match: re.Match[str]) -> str:  # a backslash means itself, except before a quote
        return 2 * match[1] + ("\\'" if match[2] else "")

    return "'" + re.sub(r"(\\*)('|$)", escaped, text) + "'"


def swept(config: Any) -> dict[str, int]:
    """Return the keys that a sweep sweeps over.

    Args:
        config: The config of the sweep.

    Returns:
        The number of values of each key; 0 if the sweeper decides while it runs.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    found: dict[str, int] = {}
    for override in OverridesParser.create().parse_overrides(words_of(config)):
        key = override.get_key_element()
        found.pop(key, None)  # what is typed takes the place of what the config sweeps over
        if override.is_sweep_override():
            discrete = override.is_discrete_sweep()
            found[key] = sum(1 for _ in override.sweep_string_iterator()) if discrete else 0
    return found


def words_of(config: Any) -> list[str]:
    """Return the overrides of a sweep: those of the sweeper's config, then those typed."""
    params = config.hydra.sweeper.get("params") or {}
    return [*(f"{key}={value}" for key, value in params.items()), *_overrides(config)]


def count_jobs(config: Any, standing: Standing | None = None) -> int | None:
    """Count the jobs of a sweep.

    Args:
        config: The config of the sweep.
        standing: How the study of a search stands.

    Returns:
        The number; ``None`` if the sweeper decides while it runs and does not say.
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
    """Return the description of a sweep.

    Args:
        config: The config of the sweep, its ``hydra`` part included.

    Returns:
        The content of ``sweep.json``.
    """
    hydra = config.hydra
    sources = [s.path for s in hydra.runtime.config_sources if s.provider == "command-line"]
    flags = [word for path in sources for word in ("--config-dir", str(path))]
    name = hydra.job.get("config_name")
    if name not in (None, CONFIG_NAME):
        flags += ["--config-name", str(name)]
    return {
        "format": FORMAT,
        "sweeper": "search" if "n_trials" in hydra.sweeper else "plain",
        **sweep_of(config),
        "hydra": [str(w) for w in hydra.overrides.hydra if not str(w).startswith(OF_THE_PLACE)],
        "flags": flags,
        "cwd": os.getcwd(),
        "directory": os.path.abspath(hydra.sweep.dir),
    }


def sweep_of(config: Any) -> dict[str, Any]:
    """Return what identifies a sweep: the part of :func:`describe` that defines its jobs."""
    from omegaconf import OmegaConf

    params: Any = config.hydra.sweeper.get("params")
    return {
        "overrides": _overrides(config),
        "params": OmegaConf.to_container(params, resolve=True) if params else {},
    }


def told(record: dict[str, Any]) -> str:
    """Return the command line of a sweep in quotes."""
    params = [f"{key}={value}" for key, value in (record.get("params") or {}).items()]
    return f"'{' '.join([*params, *record.get('overrides', [])])}'"


@dataclass(frozen=True)
class Standing:
    """The state of a study.

    Attributes:
        trials: The number of its trials, in any state.
        done: How many finished, or were stopped by the pruner.
        interrupted: The numbers of the interrupted trials of this sweep, to be run again.
    """

    trials: int = 0
    done: int = 0
    interrupted: tuple[int, ...] = ()

    def jobs(self, n_trials: int) -> int:
        """Return the number of jobs of the sweep, including those of earlier starts."""
        return self.trials - len(self.interrupted) + max(n_trials - self.done, 0)
