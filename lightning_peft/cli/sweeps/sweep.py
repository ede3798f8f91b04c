"""Isolate the jobs of a sweep from each other.

Lightning's DDP starts the other ranks by running ``sys.argv`` again. In a sweep that is the whole
sweep, and what the first job leaves in the environment makes the second believe that its ranks are
running. So each job sees its own command line, and its environment is cleaned up after it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lightning_peft.cli.config.job_config import in_sweep
from lightning_peft.cli.runs.trial import ENVIRONMENT, trial_of
from lightning_peft.cli.sweeps.ports import free_port
from lightning_peft.cli.sweeps.record import quoted

__all__ = ["isolated_job", "job_environment", "single_job_arguments", "wants_own_process"]

DDP_ENVIRONMENT = (
    "LOCAL_RANK",
    "NODE_RANK",
    "WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "PL_GLOBAL_SEED",
    "PL_SEED_WORKERS",
)
"""What Lightning sets for the ranks of one job."""

OF_A_JOB = (*DDP_ENVIRONMENT, ENVIRONMENT)
"""What a job does not leave to the next."""

OF_THE_SWEEP = (
    "hydra.mode=",
    "hydra.sweep.",
    "hydra.sweeper",
    "hydra/sweeper",
    "hydra/launcher",
    "hydra.launcher",
    "hydra.run.dir=",
    "hydra.job.name=",
    "hydra.output_subdir=",
)
"""Overrides that make a sweep, and those that Lightning adds for a rank."""


@contextmanager
def isolated_job(args: Sequence[str], checkpoint: str | None = None) -> Iterator[None]:
    """Make one job of a sweep look like a single run; outside of a sweep do nothing.

    Args:
        args: The flags and overrides of the whole sweep.
        checkpoint: The checkpoint from which every rank resumes.
    """
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import open_dict, read_write

    if not in_sweep():
        yield
        return
    config: Any = HydraConfig.get()
    argv = sys.argv
    environment = {name: os.environ.get(name) for name in OF_A_JOB}
    os.environ |= job_environment(config)
    sys.argv = [argv[0], *single_job_arguments(args, config, checkpoint)]
    with read_write(config), open_dict(config):
        config.run.dir = config.runtime.output_dir  # where Lightning sends the other ranks
    try:
        yield
    finally:
        sys.argv = argv
        _leave_process_group()
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _reset_rank(int(environment["LOCAL_RANK"] or 0))


def job_environment(hydra: Any) -> dict[str, str]:
    """Return the environment variables of one job.

    Args:
        hydra: The ``hydra`` part of the job's config.

    Returns:
        Its trial, and the port of its ranks.
    """
    trial = trial_of(hydra)
    found = {} if trial is None else {ENVIRONMENT: trial.written()}
    port = free_port(int(hydra.job.num))
    return found if port is None else {**found, "MASTER_PORT": str(port)}


def wants_own_process(cfg: Any, sweep_process: int | None) -> bool:
    """Whether a job needs its own process, because its other ranks cannot start from this one.

    Lightning starts them by running the program of this process again, which in a worker of joblib
    or submitit is not this command. If a scheduler has started every rank, nothing is started.

    Args:
        cfg: The config of the job.
        sweep_process: The process in which the sweep began, if known.
    """
    if sweep_process == os.getpid() or os.environ.get("LOCAL_RANK"):
        return False
    if int(os.environ.get("SLURM_NTASKS") or 1) > 1:
        return False
    trainer = cfg.get("trainer") or {}
    devices, nodes = trainer.get("devices", 1), trainer.get("num_nodes") or 1
    return not (str(devices) == "1" and str(nodes) == "1")


def single_job_arguments(
    args: Sequence[str], config: Any, checkpoint: str | None = None
) -> list[str]:
    """Return the command line that runs one job of a sweep as a plain run.

    Args:
        args: The flags and overrides of the whole sweep.
        config: The ``hydra`` part of the job's config.
        checkpoint: The checkpoint to resume from.

    Returns:
        Flags and overrides, without the program's name.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag, short in (("config-path", "cp"), ("config-name", "cn"), ("config-dir", "cd")):
        parser.add_argument(f"--{flag}", f"-{short}")
    flags, _ = parser.parse_known_args(list(args))
    words = []
    for name, value in vars(flags).items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", value]
    words += list(config.overrides.task)
    if checkpoint is not None:
        words.append(f"resume={quoted(checkpoint)}")
    words += ["hydra.mode=RUN", f"hydra.job.num={config.job.num}", f"hydra.job.id={config.job.id}"]
    words += [o for o in config.overrides.hydra if not o.lstrip("+~").startswith(OF_THE_SWEEP)]
    return words


def _leave_process_group() -> None:
    torch = sys.modules.get("torch")
    if torch is None:
        return
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _reset_rank(rank: int) -> None:
    for name in ("lightning.fabric.utilities.rank_zero", "lightning_utilities.core.rank_zero"):
        module = sys.modules.get(name)
        if module is not None:
            module.rank_zero_only.rank = rank
