"""A directory that a run or a sweep is at work in: no second one starts there.

Two processes that write the same checkpoints leave a mixture of both. The first makes a file with
its process id and its host; the second is refused while that process is there. A process that is
killed leaves its file, which holds nobody up: its number is looked for.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.config.job_config import asked
from lightning_peft.cli.runs.processes import is_alive, is_other_rank, this_process

__all__ = ["FILE", "holder_of", "occupy", "occupy_run", "vacate"]

FILE = ".in_use"
PATIENCE = 1.0
"""Seconds that the process which made the file is given to write into it."""


class _Held(NamedTuple):
    path: Path
    process: int
    made: tuple[Path, ...]
    """Directories that were made for it, the innermost first."""


_held: list[_Held] = []


def occupy(directory: Path, key: str) -> None:
    """Take a directory for this process, until :func:`vacate`.

    A rank beside the first of a job takes nothing: the directory is its job's already.

    Args:
        directory: The directory; it is made where there is none.
        key: The key of the config that chooses it, for the message.

    Raises:
        ConfigError: If another process is at work there, or one of another machine may be; or if
            nothing can be written there.
    """
    path = (directory / FILE).absolute()
    if is_other_rank() or any(held.path == path for held in _here()):
        return
    with _writing(path.parent, key):
        made = tuple(_missing(path.parent))
        path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with _writing(path.parent, key):
            if _make(path):
                break
        process = _read(path)
        if process is not None and _is_gone(process):
            _put_away(path, process)
            continue
        raise ConfigError([_told(directory, path, process, key)])
    _held.append(_Held(path, os.getpid(), made))


def occupy_run(config: Any) -> None:
    """Take the directory of a single run, before Hydra makes it.

    Args:
        config: The config of the run, its ``hydra`` part included.

    Raises:
        ConfigError: As for :func:`occupy`.
    """
    with asked(config):  # the directory may ask for a choice
        directory = Path(config.hydra.run.dir)
    occupy(directory, "hydra.run.dir")


def vacate() -> None:
    """Leave every directory that this process has taken, as it was found where nothing came."""
    for held in _here():
        _held.remove(held)
        held.path.unlink(missing_ok=True)
        for directory in held.made:
            with suppress(OSError):  # something is in it
                directory.rmdir()


def holder_of(directory: Path) -> dict[str, Any] | None:
    """Give the process that is at work in a directory, where one is; not this one."""
    process = _read(directory / FILE)
    return None if process is None or _is_gone(process) else process


def _here() -> list[_Held]:
    """What this very process took: one that was forked from it holds nothing."""
    return [held for held in _held if held.process == os.getpid()]


def _missing(directory: Path) -> Iterator[Path]:
    while not directory.exists():
        yield directory
        directory = directory.parent


@contextmanager
def _writing(directory: Path, key: str) -> Iterator[None]:
    """Say which key it is where nothing can be written in its directory."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise ConfigError(
            [f"{key}: cannot write in {directory} ({why}). Choose another {key}."]
        ) from error


def _make(path: Path) -> bool:
    """Make the file, which one process alone can do."""
    try:
        number = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    with os.fdopen(number, "w", encoding="utf-8") as file:
        json.dump(this_process(), file)
    return True


def _read(path: Path) -> dict[str, Any] | None:
    """Read who made the file; ``{}`` where it says nothing, ``None`` where there is none."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            found = None
        if isinstance(found, dict):
            return found
        if time.monotonic() > until:
            return {}
        time.sleep(0.02)


def _is_gone(process: dict[str, Any]) -> bool:
    alive = is_alive(process)
    # a file of this very number that this process did not make is of one before it
    return alive is False or (alive is True and process.get("id") == os.getpid())


def _put_away(path: Path, process: dict[str, Any]) -> None:
    """Remove the file of a process that is gone, and of no other."""
    aside = path.with_name(f"{FILE}.{os.getpid()}")
    try:
        path.rename(aside)  # of several processes that find it, one moves it
    except FileNotFoundError:
        return
    if _read(aside) != process:  # another one was quicker, and this is its own
        with suppress(FileExistsError):
            os.link(aside, path)
    aside.unlink()


def _told(directory: Path, path: Path, process: dict[str, Any] | None, key: str) -> str:
    if process is None:  # it has just come to its end
        return f"{directory} was in use until now: start again."
    if not process.get("id"):
        return (
            f"{directory} may be in use: {path} does not say by which process. If nothing runs "
            f"there, delete {path}; otherwise choose another {key}."
        )
    who = f"process {process['id']}"
    since = process.get("started")
    if isinstance(since, int | float):
        who += f" since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(since))}"
    if is_alive(process) is None:
        return (
            f"{directory} may be in use: {who} on {process.get('host')} took it, and from here "
            f"it cannot be asked. If it does not run any more, delete {path}; otherwise choose "
            f"another {key}."
        )
    return (
        f"{directory} is in use: {who} on this machine is at work there. Wait for it, end it, or "
        f"choose another {key}."
    )
