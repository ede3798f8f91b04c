"""What a signal leaves of a run: its state, and the command that continues it."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lightning_peft.lightning.signals import LISTENER

__all__ = ["continuing", "is_stopping", "jobs_under", "record_interrupted"]

STOPPING = "stopping"
"""The key with which a sweep tells the workers of its launcher that no further job begins."""

PLAIN = re.compile(r"[\w./+-]+")
"""Values that Hydra's grammar takes as they are."""


def record_interrupted(cfg: Any) -> None:
    """Write that a run was interrupted; never raise, since the process is about to end.

    A run that is complete by then stays so.

    Args:
        cfg: The config of the run.
    """
    from lightning_peft.cli.runs.occupied import holder_of, is_other_rank
    from lightning_peft.cli.runs.summary import read_summary, write_summary

    if is_other_rank():
        return
    try:
        directory = Path(cfg.output_dir)
        if read_summary(directory).get("status") == "running" and holder_of(directory) is None:
            write_summary(directory, cfg, status="interrupted")
    except Exception:
        return


def continuing(words: Sequence[str], directory: Path, output: Path) -> str:
    """Return the command that continues a single run.

    Args:
        words: The words of its command line.
        directory: Its directory, as Hydra has it.
        output: Where its files are.
    """
    from lightning_peft.cli.sweeps.earlier import LAST

    last = output / LAST
    ours = ("hydra.run.dir=", "resume=") if last.is_file() else ("hydra.run.dir=",)
    kept = [word for word in words if not word.lstrip("+").startswith(ours)]
    if last.is_file():
        kept.append(f"resume={_value(last)}")
    return shlex.join(["lightning-peft", *kept, f"hydra.run.dir={_value(directory)}"])


def _value(path: Path) -> str:
    from lightning_peft.cli.sweeps.record import quoted

    return str(path) if PLAIN.fullmatch(str(path)) else quoted(str(path))


def jobs_under(directory: Path) -> Iterable[int]:
    """Return the processes of this machine that run jobs of a sweep.

    Once this process was told to end, the directory says so as well (:func:`is_stopping`).

    Args:
        directory: The directory of the sweep.
    """
    from lightning_peft.cli.runs.occupied import FILE, holder_of

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
    from lightning_peft.cli.runs.occupied import FILE

    if LISTENER.number is not None:
        return True
    try:
        return STOPPING in json.loads((directory / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False
