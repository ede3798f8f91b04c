"""The port at which the ranks of a job meet, which no job that runs beside it can choose.

Lightning asks the system for a free port, lets it go, and opens it again seconds later. Jobs that
start together may be given the same one in between.
"""

from __future__ import annotations

import os
import secrets
import socket

__all__ = ["candidates", "free_port"]

FIRST, LAST = 10_000, 32_000
"""Below what systems hand out by themselves (from 32768 on Linux, from 49152 elsewhere)."""

AT_ONCE = 32
"""So many jobs that are numbered one after the other have no candidate in common."""

ELSEWHERE = ("MASTER_PORT", "SLURM_JOB_ID", "LSB_JOBID", "TORCHELASTIC_RUN_ID")
"""Where one of these is set, somebody else decides on the port, for several machines."""


def free_port(job: int) -> int | None:
    """Find a port for the ranks of a job.

    Args:
        job: The number of the job in its sweep.

    Returns:
        A port that nobody listens at; ``None`` where the port is not ours to choose, or all are
        taken.
    """
    if any(os.environ.get(name) for name in ELSEWHERE):
        return None
    ports = candidates(job)
    first = secrets.randbelow(len(ports))  # another sweep on this machine begins elsewhere
    return next((port for port in (*ports[first:], *ports[:first]) if _is_free(port)), None)


def candidates(job: int) -> range:
    """List the ports that a job may take; of the next jobs, no other may take them."""
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
