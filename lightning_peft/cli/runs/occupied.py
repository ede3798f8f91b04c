"""Lock the directory of a run or a sweep, so that no second process starts there.

Two processes that write the same checkpoints leave a mixture of both. The first locks
``.in_use.lock``, which the system frees when the process ends, however it ends. ``.in_use`` next to
it names that process for those that are refused.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.config.job_config import asked, place_key

__all__ = [
    "FILE",
    "holder_of",
    "is_other_rank",
    "occupied",
    "occupy",
    "occupy_run",
    "this_process",
    "vacate",
]

FILE = ".in_use"
PATIENCE = 0.5
"""Seconds to wait for a lock, since a check whether a run is under way holds it for a moment."""

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""The errors of a file system without locks, such as NFS without its lock daemon."""

RANKS = ("LOCAL_RANK", "NODE_RANK", "RANK", "SLURM_PROCID")
"""Environment variables that tell a process which of a job's ranks it is."""


_held: dict[Path, tuple[BaseFileLock, list[Path]]] = {}
"""By the path of :data:`FILE`: the lock, and the directories that were made, innermost first."""


def this_process() -> dict[str, Any]:
    """Return the ``id`` and ``host`` of this process, and the current time (``started``).

    Under Slurm also its ``job``, and how often that was started again (``restart``).
    """
    now = {"id": os.getpid(), "host": socket.gethostname(), "started": time.time()}
    return {**now, **_job()}


def is_other_rank() -> bool:
    """Whether this process is a rank of a job other than the first."""
    return any((os.environ.get(name) or "0") != "0" for name in RANKS)


def occupy(directory: Path, key: str) -> bool:
    """Occupy a directory for this process, until :func:`vacate`.

    A rank other than the first occupies nothing: the directory belongs to its job already.

    Args:
        directory: The directory; it is created if it does not exist.
        key: The key of the config that chooses it, for the message.

    Returns:
        Whether it was occupied now; false if this process or its job has it already.

    Raises:
        ConfigError: If another process works there, or one of another machine may; or if nothing
            can be written there.
    """
    path = directory.resolve() / FILE
    if is_other_rank() or _is_ours(path):
        return False
    try:
        made = [d for d in (path.parent, *path.parent.parents) if not d.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _locked(path, PATIENCE)
        holder = _read(path)
        if _has_ended(holder):
            _held[path] = lock, made
            try:
                path.write_text(json.dumps(this_process()), encoding="utf-8")
            except BaseException:
                _leave(path)
                raise
    except Timeout as refused:
        soft = refused.lock_file.endswith("soft")
        raise ConfigError([_told(directory, path, _read(path), key, locked=not soft)]) from None
    except OSError as error:
        why = error.strerror or str(error)
        told = f"{key}: cannot write in {path.parent} ({why}). Choose another {key}."
        raise ConfigError([told]) from error
    if path not in _held:
        lock.release()
        raise ConfigError([_told(directory, path, holder, key, locked=False)])
    return True


def occupy_run(config: Any) -> None:
    """Occupy the directory of a single run, before Hydra creates it.

    Args:
        config: The config of the run, its ``hydra`` part included.

    Raises:
        ConfigError: As for :func:`occupy`.
    """
    with asked(config):  # the directory may ask for a choice
        directory = Path(config.hydra.run.dir)
    occupy(directory, place_key(config))


@contextmanager
def occupied(directory: Path, key: str) -> Iterator[None]:
    """Occupy a directory as :func:`occupy` does, and release it at the end of the block."""
    taken = occupy(directory, key)
    try:
        yield
    finally:
        if taken:
            _leave(directory.resolve() / FILE)


def vacate() -> None:
    """Release every directory of this process, and remove those that are still empty."""
    for path in list(_held):
        _leave(path)


def holder_of(directory: Path) -> dict[str, Any] | None:
    """Return the process that works in a directory, or may do so on another machine.

    Args:
        directory: The directory.

    Returns:
        The result of :func:`this_process` there, ``{}`` if it is not known, and ``None`` if there
        is no other process.
    """
    path = directory.resolve() / FILE
    if _is_ours(path) or not path.exists():
        return None
    holder = _read(path)
    try:
        _locked(path, 0).release()
    except Timeout:
        return holder
    except OSError:  # of another user
        return {}
    return None if _has_ended(holder) else holder


def _is_ours(path: Path) -> bool:
    """Whether this very process holds the lock; a process forked from it does not."""
    return path in _held and _held[path][0].is_locked


def _leave(path: Path) -> None:
    lock, made = _held.pop(path)
    if not lock.is_locked:  # forked
        return
    # before it is free: who has opened the file by now sees that it has no name any more
    for name in (FILE, f"{FILE}.lock"):
        with suppress(OSError):
            path.with_name(name).unlink()
    lock.release()
    for directory in made:
        with suppress(OSError):  # something is in it
            directory.rmdir()


def _locked(path: Path, patience: float) -> BaseFileLock:
    """Lock a file next to a path; without locks, by the existence of another file."""
    lock: BaseFileLock = FileLock(f"{path}.lock", thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(timeout=patience)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        lock = SoftFileLock(f"{path}.soft", thread_local=False)
        lock.acquire(timeout=patience)
    return lock


def _read(path: Path) -> dict[str, Any]:
    """Return the process that has the directory; ``{}`` if it is not recorded."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _has_ended(holder: dict[str, Any]) -> bool:
    """Whether the process that had a directory has ended, now that its lock is free.

    Not every file system shares its locks between machines; but Slurm ends a job before it starts
    it again, often on another machine.
    """
    job, start = holder.get("job"), holder.get("restart")
    again = job is not None and job == _job().get("job") and start != _job()["restart"]
    return _is_here(holder) or again


def _job() -> dict[str, str]:
    """Return the job of Slurm that this process belongs to, and how often it was started again."""
    job = os.environ.get("SLURM_JOB_ID")
    return (
        {} if job is None else {"job": job, "restart": os.environ.get("SLURM_RESTART_COUNT", "0")}
    )


def _is_here(holder: dict[str, Any]) -> bool:
    return holder.get("host", socket.gethostname()) == socket.gethostname()


def _told(directory: Path, path: Path, holder: dict[str, Any], key: str, locked: bool) -> str:
    who = f"process {holder['id']}" if holder.get("id") else "another process"
    since = holder.get("started")
    if isinstance(since, int | float):
        who += f" since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(since))}"
    if _is_here(holder) or locked:
        where = "this machine" if _is_here(holder) else holder["host"]
        return (
            f"{directory} is in use: {who} on {where} works there. Wait for it, end it, or choose "
            f"another {key}."
        )
    files = " and ".join(map(str, (path, *path.parent.glob(f"{FILE}.soft"))))
    return (
        f"{directory} may be in use: {who} on {holder['host']} took it, and its process cannot be "
        f"checked from this machine. If it has ended, delete {files}; otherwise choose another "
        f"{key}."
    )
