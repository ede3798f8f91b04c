"""What a signal leaves of a run or a sweep: no jobs, and the command that continues it."""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from lightning_peft.cli.runs.occupied import FILE, holder_of, is_other_rank
from lightning_peft.cli.runs.summary import read_summary
from lightning_peft.cli.sweeps.record import FILE as RECORD
from lightning_peft.cli.sweeps.resuming import continuing
from lightning_peft.cli.sweeps.state import STATE
from lightning_peft.lightning.signals import LISTENER, name_of

__all__ = [
    "is_stopping",
    "jobs",
    "jobs_under",
    "say_how_to_go_on",
]

STOPPING = "stopping"
"""The key with which a sweep tells the workers of its launcher that no further job begins."""


def jobs_under(directory: Path) -> Iterable[int]:
    """Return the processes of this machine that run jobs of a sweep.

    Once this process was told to end, the directory says so as well (:func:`is_stopping`).

    Args:
        directory: The directory of the sweep.
    """
    own = directory / FILE
    if LISTENER.number is not None:
        _say(own)
    found = []
    for path in directory.rglob(FILE):
        if path == own:
            continue
        holder = holder_of(path.parent) or {}
        if holder.get("host") == socket.gethostname() and isinstance(holder.get("id"), int):
            found.append(int(holder["id"]))
    return found


def _say(path: Path) -> None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("id") == os.getpid() and STOPPING not in content:
            path.write_text(json.dumps({**content, STOPPING: LISTENER.number}), encoding="utf-8")
    except (OSError, ValueError, AttributeError):  # its workers begin another job for nothing
        return


def is_stopping(directory: Path) -> bool:
    """Whether the sweep in a directory, or this very process, was told to end."""
    if LISTENER.number is not None:
        return True
    try:
        return STOPPING in json.loads((directory / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def jobs() -> Iterable[int]:
    """Return the processes in which jobs of the sweep of this process run."""
    return () if STATE.directory is None else jobs_under(STATE.directory)


def say_how_to_go_on(args: Sequence[str], number: int | None = None) -> None:
    """Print the command that continues what was interrupted, in one line.

    Args:
        args: The command line.
        number: The signal that stopped it, if one did.
    """
    stopped = "" if number is None else f"stopped by {name_of(number)}; "
    line = f"{stopped}nothing is left to resume" if stopped else ""
    if STATE.directory is not None and (STATE.directory / RECORD).is_file():
        words = f"lightning-peft continue {shlex.quote(str(STATE.directory))}"
        STATE.directory = None
        line = f"{stopped}to resume the sweep: {words}"
    elif STATE.run is not None and read_summary(STATE.run[1]).get("status") == "completed":
        line = f"{stopped}the run is complete: {STATE.run[1]}"
    elif STATE.run is not None:
        line = f"{stopped}to resume the run: {continuing(args, *STATE.run)}"
    if line and not LISTENER.obeys and not is_other_rank():  # a job's sweep says it
        print(f"lightning-peft: {line}", file=sys.stderr, flush=True)
