"""Open the storage of a study: a journal of Optuna in a file, or a database.

A journal is written line by line, under a lock that the kernel releases if a process is killed.
A line that such a process left half written is cut off when the journal is next opened; otherwise
the next line would follow it directly, and neither could be read.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from lightning_peft.cli.config.errors import ConfigError

__all__ = ["cannot_open", "earlier_study", "file_of", "open_storage", "whole_address"]

SQLITE = "sqlite:///"
BUSY_SECONDS = 60.0
"""How long a job waits for a SQLite file in which another job writes."""

JOURNAL = b'{"op_code":'
"""The beginning of a journal."""

BEFORE = "study.db"
"""The file of the study in releases with Optuna 2.10, in the directory of the sweep."""

OLDEST = 3
"""The first release of Optuna whose databases the current one reads."""


def file_of(storage: Any) -> Path | None:
    """Return the file of a study; ``None`` if it is in memory or on a server."""
    if not isinstance(storage, str) or ("://" in storage and not storage.startswith(SQLITE)):
        return None
    return Path(storage.removeprefix(SQLITE))


def whole_address(storage: str, directory: str) -> str:
    """Return a storage with the whole path of its file: a job may work in another directory.

    Args:
        storage: As ``hydra.sweeper.storage``.
        directory: The directory that a path begins in.
    """
    file = file_of(storage)
    if file is None:
        return storage
    return f"{SQLITE if storage.startswith(SQLITE) else ''}{os.path.join(directory, file)}"


def open_storage(storage: Any) -> Any:
    """Open the storage of a study.

    Args:
        storage: A path, an address, a storage of Optuna's, or ``None``.

    Returns:
        A storage of Optuna's, or ``None``.

    Raises:
        ConfigError: If it cannot be opened.
    """
    if not isinstance(storage, str):
        return storage
    from optuna.storages import RDBStorage

    try:
        if storage.startswith(SQLITE):
            return RDBStorage(storage, engine_kwargs={"connect_args": {"timeout": BUSY_SECONDS}})
        return RDBStorage(storage) if "://" in storage else _open_journal(storage)
    except Exception as error:  # SQLAlchemy's and the driver's own
        raise cannot_open(storage, error) from error


def cannot_open(storage: Any, error: Exception) -> ConfigError:
    """Return the error for a study that cannot be opened."""
    why = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return ConfigError(
        [
            "hydra.sweeper.storage: expected a journal of Optuna's, such as study.journal, or the "
            f"address of a database, such as sqlite:///study.db, got {storage}, which cannot be "
            f"opened ({why}). Choose another hydra.sweeper.storage."
        ]
    )


def earlier_study(storage: Any, directory: Path | None) -> str | None:
    """Return what to do if a study of an earlier release is in the way; the study is only read.

    Args:
        storage: As ``hydra.sweeper.storage``.
        directory: The directory of the sweep, where it is known.

    Returns:
        A sentence, or ``None``.
    """
    file = file_of(storage)
    if file is None:
        return None
    for found in (file, *([] if directory is None else [directory / BEFORE])):
        version = _written_by(found)
        is_it = storage.startswith(SQLITE) and found.absolute() == file.absolute()
        if version is None or (is_it and int(version.partition(".")[0]) >= OLDEST):
            continue
        address = f"{SQLITE}{found}"
        return (
            f"hydra.sweeper.storage: expected a study of this release, got {found}, a database of "
            f"Optuna {version} as earlier releases wrote it. To start again, choose another "
            "hydra.sweep.dir or hydra.sweeper.storage. To resume it, keep a copy, let Optuna "
            f"convert it (optuna storage upgrade --storage {address}) and add "
            f"hydra.sweeper.storage={address}"
        )
    return None


def _written_by(file: Path) -> str | None:
    """Return the release of Optuna that wrote a SQLite file; ``None`` if none did."""
    if not file.is_file():
        return None
    address = f"{file.absolute().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(address, uri=True)) as database:
            row = database.execute("SELECT library_version FROM version_info").fetchone()
    except sqlite3.Error:
        return None
    return None if row is None else str(row[0])


def _open_journal(path: str) -> Any:
    from filelock import FileLock
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    if os.path.exists(path):
        with open(path, "rb") as file:
            if not JOURNAL.startswith(file.read(len(JOURNAL))):
                raise ValueError("it is not a journal")
    # Optuna's own locks are files (.lock), which a killed process leaves behind for half a minute
    lock: Any = FileLock(f"{path}.held")
    with lock:
        _mend(path)
    return JournalStorage(JournalFileBackend(path, lock_obj=lock))


def _mend(path: str) -> None:
    """Cut off a line that was half written when its process was killed."""
    content = Path(path).read_bytes() if os.path.exists(path) else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
