"""The options of commands that read what somebody recorded: ``--trust`` and ``--config-dir``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.trust.allowed import targets_in
from lightning_peft.system.environment import variable

__all__ = [
    "NOBODY",
    "Trust",
    "add_trust",
    "checked_jobs",
    "refuse",
    "trust_of",
    "trust_of_jobs",
]

ENVIRONMENT = "LIGHTNING_PEFT_RECORDED"
"""Set for the jobs of a recorded sweep, also in other processes: the directories of configs."""

MOST_TOLD = 20
"""The most problems of a file that are listed."""


@dataclass(frozen=True)
class Trust:
    """What the user vouches for.

    Attributes:
        all: Whether everything that the directory names may be imported and called.
        config_dirs: Directories of the user's own configs.
        own: The targets that these configs name.
    """

    all: bool = False
    config_dirs: tuple[Path, ...] = ()
    own: frozenset[str] = frozenset()


NOBODY = Trust()
"""Nothing is vouched for."""


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust`` and ``--config-dir`` to a command that reads a recorded run or sweep."""
    parser.add_argument(
        "--config-dir", type=Path, action="append", default=[], metavar="DIR",
        help="your own configs: what they name may be built (may be given several times)",
    )  # fmt: skip
    parser.add_argument(
        "--trust", action="store_true",
        help="import and call whatever the directory names: only for what you wrote yourself",
    )  # fmt: skip


def trust_of(options: argparse.Namespace) -> Trust:
    """Return what the user vouches for.

    Raises:
        ConfigError: If a directory of configs does not exist.
    """
    wrong = [f"--config-dir: expected a directory of configs, got {path}"
             for path in options.config_dir if not path.is_dir()]  # fmt: skip
    if wrong:
        raise ConfigError(wrong)
    found = tuple(options.config_dir)
    return Trust(options.trust, found, targets_in(found))


def refuse(where: Path, problems: list[str]) -> None:
    """Refuse a recorded file with everything in it that is not allowed.

    Args:
        where: The file.
        problems: Each begins with the key.

    Raises:
        ConfigError: If there are problems.
    """
    if not problems:
        return
    told = [f"{where}: {problem}" for problem in problems[:MOST_TOLD]]
    if len(problems) > MOST_TOLD:
        told.append(f"{where}: and {len(problems) - MOST_TOLD} more")
    told.append(
        "Nothing was imported, built or written. What a recorded run may do without your word is "
        "in docs/threats.md. If the code is your own: --config-dir DIR with the configs that name "
        "it, or --trust for all of it."
    )
    raise ConfigError(told)


@contextmanager
def checked_jobs(trust: Trust) -> Iterator[None]:
    """Let every job that starts in the block check what it builds, in whatever process it runs.

    The words of a recorded sweep are checked before; this looks at what was composed of them.

    Args:
        trust: What the user vouches for.
    """
    if trust.all:
        yield
        return
    with variable(ENVIRONMENT, os.pathsep.join(str(p.resolve()) for p in trust.config_dirs)):
        yield


def trust_of_jobs() -> Trust | None:
    """Return what the user vouches for in this job; ``None`` if nobody recorded it."""
    text = os.environ.get(ENVIRONMENT)
    if text is None:
        return None
    found = tuple(Path(part) for part in text.split(os.pathsep) if part)
    return Trust(config_dirs=found, own=targets_in(found))
