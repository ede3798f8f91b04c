"""Run one job for the launcher ``fresh``: start it as a plain run, and read how it ended.

Lightning kills the main process when another rank dies. In its own process such a job does not end
the sweep, and no job inherits ranks, ports, process groups or memory from the one before.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback

from lightning_peft.cli.config.job_config import RESULT_OF_A_JOB
from lightning_peft.cli.runs.parent import ENVIRONMENT, here
from lightning_peft.cli.runs.summary import record_death, write_json
from lightning_peft.cli.sweeps.record import quoted
from lightning_peft.cli.sweeps.sweep import OF_A_JOB, job_environment, single_job_arguments
from lightning_peft.errors import PEFTError
from lightning_peft.lightning.signals import LISTENER, SIGNALS, Stopped, exit_status, name_of

__all__ = ["JobDied", "LeaveResult", "command_line", "run_fresh"]

RESULT = ".result.json"
CALLBACK = f"hydra.callbacks.{RESULT_OF_A_JOB}"


class JobDied(PEFTError, RuntimeError):
    """Raised for a job whose process ended without success."""


class LeaveResult(Callback):
    """Writes the result of a job into its directory, for the process that started it."""

    def on_job_end(self, config: Any, job_return: Any, **kwargs: Any) -> None:
        """Write the value, unless JSON cannot hold it."""
        value = job_return._return_value
        if isinstance(value, int | float | str | list | tuple | dict | None):
            write_json(Path(config.hydra.runtime.output_dir) / RESULT, {"value": value})


def run_fresh(cfg: Any, hydra: Any, directory: Path, module: str | None, resume: str | None) -> Any:
    """Run one job of a sweep in its own process.

    Args:
        cfg: The config of the job.
        hydra: The ``hydra`` part of it.
        directory: The directory of the job.
        module: The module that is run; by default the program that is running.
        resume: The checkpoint to resume from.

    Returns:
        What the job returned.

    Raises:
        JobDied: If the process failed; the message says how, and where the log is.
        Stopped: If a signal ends this process, and has ended the job.
    """
    directory.mkdir(parents=True, exist_ok=True)
    result = directory / RESULT
    result.unlink(missing_ok=True)
    environment = {k: v for k, v in os.environ.items() if k not in OF_A_JOB}
    environment |= job_environment(hydra)
    words = [
        *single_job_arguments(sys.argv[1:], hydra, resume),
        f"hydra.run.dir={quoted(str(directory))}",
        f"++{CALLBACK}._target_={__name__}.{LeaveResult.__name__}",
    ]
    environment[ENVIRONMENT] = here()  # a worker has started it, which ends with the sweep
    done = subprocess.run([*command_line(module), *words], env=environment, check=False)
    if LISTENER.number is not None:  # the job was told to end as well
        raise Stopped(LISTENER.number)
    if done.returncode != 0:
        ended = _ended(done.returncode)
        record_death(directory, cfg, f"the process of the job {ended}")
        raise JobDied(f"job #{hydra.job.num} {ended}; its log is in {directory}")
    try:
        value = json.loads(result.read_text(encoding="utf-8"))["value"]
    except FileNotFoundError:
        value = None
    result.unlink(missing_ok=True)
    return value


def command_line(module: str | None) -> Sequence[str]:
    """Return the command line that starts a program again.

    Args:
        module: A module to run as ``python -m``; by default the program that is running.
    """
    spec = None if module is not None else sys.modules["__main__"].__spec__
    if module is not None or spec is not None:
        name = module if spec is None else spec.name.removesuffix(".__main__")
        return [sys.executable, "-m", str(name)]
    return [sys.executable, os.path.abspath(sys.argv[0])]


def _ended(status: int) -> str:
    if status < 0:
        return f"was killed by {name_of(-status)}"
    stopped = [number for number in SIGNALS if exit_status(number) == status]
    return (
        f"was stopped by {name_of(stopped[0])}" if stopped else f"ended with exit status {status}"
    )
