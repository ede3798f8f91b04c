"""Run one job for Hydra: in this process or one of its own, its errors and its end recorded."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lightning_peft.cli.config.errors import of_a_file
from lightning_peft.cli.sweeps.state import STATE

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from lightning_peft.cli.sweeps.earlier import Earlier

__all__ = ["Failure", "Value", "run_job"]

PROGRAM = "lightning_peft.cli"
"""What ``python -m`` runs as this command."""

Value = float | list[float] | None
"""What a sweeper is told of a job."""

log = logging.getLogger(__name__)


class Failure(NamedTuple):
    """An error, the directory of its job if the job belongs to a sweep, and how to go on."""

    error: BaseException
    directory: str = ""
    hint: str = ""


log = logging.getLogger(__name__)


def run_job(cfg: DictConfig, args: Sequence[str], failures: list[Failure]) -> Value:
    """Run one job; in the worker of a launcher, let the sweep end with whoever started it."""
    from hydra.core.hydra_config import HydraConfig

    from lightning_peft.cli.config.job_config import in_sweep
    from lightning_peft.cli.config.typed_paths import from_where_it_was_typed, typed_in
    from lightning_peft.cli.runs.parent import alone, watch_parent
    from lightning_peft.cli.sweeps.stopping import is_stopping
    from lightning_peft.lightning.signals import LISTENER, Stopped

    from_where_it_was_typed(cfg)
    if not in_sweep() or STATE.process == os.getpid():
        return _one(cfg, args, failures)
    watch_parent()
    with LISTENER.listening():
        try:
            if not is_stopping(typed_in() / HydraConfig.get().sweep.dir):
                return _one(cfg, args, failures)
        except Stopped as stop:  # an exception would make joblib kill the other workers
            log.warning("stopped by signal %d", stop.number)
        finally:
            alone()
    return float("nan")


def _one(cfg: DictConfig, args: Sequence[str], failures: list[Failure]) -> Value:
    """Run one job, and keep its error, so that the jobs after it still run."""
    from hydra.core.hydra_config import HydraConfig

    from lightning_peft.cli.config.job_config import in_sweep, own_process
    from lightning_peft.cli.runs.occupied import occupied
    from lightning_peft.cli.runs.summary import record_failure, record_interrupted
    from lightning_peft.cli.sweeps.earlier import Earlier, earlier_run
    from lightning_peft.cli.sweeps.resuming import how_to_resume
    from lightning_peft.cli.sweeps.sweep import isolated_job, wants_own_process
    from lightning_peft.lightning.signals import LISTENER

    directory = str(cfg.output_dir) if in_sweep() else ""
    # raises for the directory of another job, whose summary is not overwritten
    before = earlier_run(cfg) if in_sweep() else Earlier()
    if before.summary is not None:
        return before.objective
    if in_sweep() and wants_own_process(cfg, STATE.process):
        return _in_own_process(cfg, before, failures)
    if before.checkpoint is not None:
        cfg.resume = str(before.checkpoint)
    places = Path(HydraConfig.get().runtime.output_dir), Path(cfg.output_dir)
    STATE.run = None if directory else places
    last_words = lambda number: record_interrupted(cfg)  # noqa: E731
    LISTENER.last_words.insert(0, last_words)
    with isolated_job(args, cfg.resume if before.checkpoint is not None else None):
        try:
            from lightning_peft.cli.jobs.train import train

            key = "hydra.sweep.dir" if directory or own_process() else "output_dir"
            with occupied(Path(cfg.output_dir), key):
                try:
                    value = train(cfg)
                    STATE.run = None
                    return value
                except (KeyboardInterrupt, SystemExit):
                    record_interrupted(cfg)
                    raise
        except Exception as error:
            log.debug("the job failed", exc_info=error)
            if not _is_of_another_start(cfg):
                record_failure(cfg, error)
            hint = "" if directory else how_to_resume(error, args, *places)
            told = of_a_file(error) if isinstance(error, IsADirectoryError) else error
            failures.append(Failure(told, directory, hint))
            return float("nan")
        finally:
            LISTENER.last_words.remove(last_words)


def _in_own_process(cfg: DictConfig, before: Earlier, failures: list[Failure]) -> Value:
    """Run a job of several ranks in a process whose command line the other ranks can replay."""
    from hydra.core.hydra_config import HydraConfig

    from lightning_peft.cli.sweeps.fresh import JobDied, run_fresh

    resume = None if before.checkpoint is None else str(before.checkpoint)
    directory = Path(cfg.output_dir)
    try:
        value: Value = run_fresh(cfg, HydraConfig.get(), directory, PROGRAM, resume)
    except JobDied as error:  # its summary says why
        failures.append(Failure(error, str(directory)))
        return float("nan")
    return value


def _is_of_another_start(cfg: DictConfig) -> bool:
    from lightning_peft.cli.sweeps.earlier import is_of_another_start

    try:
        return is_of_another_start(cfg)
    except Exception:  # the config itself may be what is wrong
        return False
