"""Which process is meant, and whether it is still there."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["is_alive", "is_other_rank", "this_process"]

RANKS = ("LOCAL_RANK", "NODE_RANK", "RANK", "SLURM_PROCID")
"""Environment variables that tell a process which of a job's ranks it is."""


def this_process() -> dict[str, Any]:
    """Describe this process in plain JSON types.

    Returns:
        ``id``, ``host``, ``started`` (seconds since the epoch when this was asked) and ``born``:
        when the system started the process, in its own unit, where it says so.
    """
    return {
        "id": os.getpid(),
        "host": socket.gethostname(),
        "started": time.time(),
        "born": _born(os.getpid()),
    }


def is_alive(process: Mapping[str, Any]) -> bool | None:
    """Look whether a process is still there.

    Args:
        process: As :func:`this_process` describes it.

    Returns:
        ``None`` where that cannot be asked: it is on another machine, or not described.
    """
    number = process.get("id")
    here = os.name == "posix" and process.get("host") == socket.gethostname()
    if not here or not isinstance(number, int) or number < 1:  # elsewhere, signal 0 is no question
        return None
    try:
        os.kill(number, 0)
    except PermissionError:  # of another user, so it exists
        pass
    except (OSError, OverflowError):
        return False
    # numbers are given again: in a container that is started anew, soon
    born, now = process.get("born"), _born(number)
    return born is None or now is None or born == now


def is_other_rank() -> bool:
    """Whether this process is a rank beside the first of a job, which another process leads."""
    return any((os.environ.get(name) or "0") != "0" for name in RANKS)


def _born(number: int) -> int | None:
    """When a process was started, in clock ticks since the machine was; Linux alone says it."""
    try:
        text = Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace")
        return int(text.rpartition(")")[2].split()[19])  # the name in brackets may hold anything
    except (OSError, ValueError, IndexError):
        return None
