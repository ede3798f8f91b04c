"""Find a port for the ranks of a job that no other running job can choose.

Lightning asks the system for a free port, releases it, and opens it again seconds later. Jobs that
start together may get the same port in between.
"""

from __future__ import annotations

import os
import secrets
import socket

__all__ = ["candidates", "free_port"]

FIRST, LAST = 10_000, 32_000
"""Below the ports that systems assign by themselves (from 32768 on Linux, 49152 elsewhere)."""

AT_ONCE = 32
"""This many jobs with consecutive numbers have no candidate in common."""

ELSEWHERE = ("MASTER_PORT", "SLURM_JOB_ID", "LSB_JOBID", "TORCHELASTIC_RUN_ID")
"""If one of these is set, the port is chosen elsewhere, for several machines."""


def free_port(job: int) -> int | None:
    """Return a port for the ranks of a job.

    Args:
        job: The number of the job in its sweep.

    Returns:
        A port on which no process listens; ``None`` if the port is chosen elsewhere, or all are
        taken.
    """
    if any(os.environ.get(name) for name in ELSEWHERE):
        return None
    ports = candidates(job)
    first = secrets.randbelow(len(ports))  # another sweep on this machine begins elsewhere
    return next((port for port in (*ports[first:], *ports[:first]) if _is_free(port)), None)


def candidates(job: int) -> range:
    """Return the ports that a job may take, and that none of the next jobs may take."""
    return range(FIRST + job % AT_ONCE, LAST, AT_ONCE)


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # a port of the job before may still be settling, which does not stop a listener of torch
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
