"""Serve ``lightning-peft`` without a command: compose the config and train, once or as a sweep."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_peft.cli.config.errors import explain
from lightning_peft.cli.config.paths import conf_dir
from lightning_peft.errors import near
from lightning_peft.system.atomic import lacks_room

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from lightning_peft.cli.sweeps.earlier import Earlier
    from lightning_peft.cli.sweeps.state import State

__all__ = ["main"]

JOB_FAILED = 1
USAGE_ERROR = 2
FULL_ERROR = "HYDRA_FULL_ERROR"

FLAGS = (
    "--help",
    "--hydra-help",
    "--version",
    "--cfg",
    "--resolve",
    "--package",
    "--run",
    "--multirun",
    "--shell-completion",
    "--config-path",
    "--config-name",
    "--config-dir",
    "--experimental-rerun",
    "--info",
)
"""Hydra's flags."""

TAKES_A_VALUE = (
    *("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn"),
    *("--config-dir", "-cd", "--experimental-rerun", "--info", "-i"),
)
"""Flags whose value may be the next word; that of ``--info`` may be left out."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""

PROGRAM = "lightning_peft.cli"
"""What ``python -m`` runs as this command."""

Value = float | list[float] | None
"""What a sweeper is told of a job."""


class Failure(NamedTuple):
    """An error, the directory of its job if the job belongs to a sweep, and how to go on."""

    error: BaseException
    directory: str = ""
    hint: str = ""


log = logging.getLogger(__name__)


def main(args: Sequence[str]) -> int:
    """Compose and train.

    Args:
        args: Hydra's flags and overrides.

    Returns:
        The exit status.
    """
    _state().failed = 0  # of an earlier sweep of this process
    wrong = _unknown_flag(args)
    if wrong is not None:
        print(f"lightning-peft: {wrong}", file=sys.stderr)
        return USAGE_ERROR
    import hydra

    typed = list(sys.argv)
    wants_all = os.environ.get(FULL_ERROR) == "1"
    failures: list[Failure] = []

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    def app(cfg: DictConfig) -> Value:
        with _as_typed(typed, wants_all):
            return _job(cfg, args, failures)

    from lightning_peft.cli.runs.occupied import vacate

    try:
        try:
            with _for_hydra(args):
                app()
        finally:
            vacate()
    except SystemExit as stop:  # argparse refuses a flag, --hydra-help is done, or Ctrl-C
        _say_how_to_go_on()
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning ends a training with 1
            return INTERRUPTED
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        _say_how_to_go_on()
        return INTERRUPTED
    except Exception as error:
        status = _report([*failures, Failure(error)], wants_all)
        if isinstance(error, RuntimeError):  # such as a process that died
            _compare_what_there_is()
            _say_how_to_go_on()
        return status
    status = _report(failures, wants_all) if failures else 0
    if any(_is_interrupted(failure) for failure in failures):
        _say_how_to_go_on()
    return JOB_FAILED if _failed_in_sweep(failures) else status


def _job(cfg: DictConfig, args: Sequence[str], failures: list[Failure]) -> Value:
    """Run one job, and keep its error, so that the jobs after it still run."""
    from lightning_peft.cli.config.job_config import in_sweep
    from lightning_peft.cli.runs.occupied import occupied
    from lightning_peft.cli.runs.summary import record_failure
    from lightning_peft.cli.sweeps.earlier import Earlier, earlier_run
    from lightning_peft.cli.sweeps.resuming import how_to_resume
    from lightning_peft.cli.sweeps.sweep import isolated_job, wants_own_process

    directory = str(cfg.output_dir) if in_sweep() else ""
    # raises for the directory of another job, whose summary is not overwritten
    before = earlier_run(cfg) if in_sweep() else Earlier()
    if before.summary is not None:
        return before.objective
    if in_sweep() and wants_own_process(cfg, _state().process):
        return _in_own_process(cfg, before, failures)
    if before.checkpoint is not None:
        cfg.resume = str(before.checkpoint)
    with isolated_job(args, cfg.resume if before.checkpoint is not None else None):
        try:
            from lightning_peft.cli.jobs.train import train

            with occupied(Path(cfg.output_dir), "hydra.sweep.dir" if directory else "output_dir"):
                return train(cfg)
        except Exception as error:
            log.debug("the job failed", exc_info=error)
            if not _is_of_another_start(cfg):
                record_failure(cfg, error)
            hint = "" if directory else how_to_resume(Path(cfg.output_dir), args, error)
            failures.append(Failure(error, directory, hint))
            return float("nan")


def _is_of_another_start(cfg: DictConfig) -> bool:
    from lightning_peft.cli.sweeps.earlier import is_of_another_start

    try:
        return is_of_another_start(cfg)
    except Exception:  # the config itself may be what is wrong
        return False


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


def _is_interrupted(failure: Failure) -> bool:
    """Whether a job can go on when there is room on the disk."""
    from lightning_peft.cli.runs.summary import read_summary

    if not failure.directory:
        return lacks_room(failure.error) is not None
    # one of its own process has told it there
    return read_summary(Path(failure.directory)).get("status") in ("interrupted", "running")


def _failed_in_sweep(failures: Sequence[Failure]) -> bool:
    """Whether a job of a sweep failed, in this process or in one of another launcher."""
    return _state().failed > 0 or any(failure.directory for failure in failures)


def _state() -> State:
    from lightning_peft.cli.sweeps.state import STATE

    return STATE


def _compare_what_there_is() -> None:
    """Show the table of a sweep that Hydra aborted, since its other jobs have run."""
    from lightning_peft.cli.comparing.publish import compare

    directory = _state().directory
    if directory is not None:
        compare(directory)


def _say_how_to_go_on() -> None:
    from lightning_peft.cli.sweeps.record import FILE

    state = _state()
    if state.directory is not None and (state.directory / FILE).is_file():
        words = f"lightning-peft continue {shlex.quote(str(state.directory))}"
        state.directory = None
        print(f"lightning-peft: to resume the sweep: {words}", file=sys.stderr)


def _flags_first(args: Sequence[str]) -> list[str]:
    """Return the flags before the overrides: Hydra's parser needs the overrides in one piece."""
    flags: list[str] = []
    overrides: list[str] = []
    value_of = ""
    for word in args:
        if word.startswith("-"):
            flags.append(word)
            value_of = word if word in TAKES_A_VALUE else ""
        elif value_of and not (value_of in ("--info", "-i") and "=" in word):
            flags.append(word)
            value_of = ""
        else:
            overrides.append(word)
            value_of = ""
    return [*flags, *overrides]


def _unknown_flag(args: Sequence[str]) -> str | None:
    """Return the error for an unknown flag; argparse would print all of Hydra's flags."""
    for word in args:
        flag = word.partition("=")[0]
        if flag.startswith("--") and not any(known.startswith(flag) for known in FLAGS):
            return f"unknown flag '{flag}'. {near(flag, FLAGS)} See: lightning-peft --help"
    return None


def _report(failures: Sequence[Failure], wants_all: bool) -> int:
    """Print each error once, and return the exit status."""
    status = USAGE_ERROR
    seen: set[str] = set()
    for error, directory, hint in failures:
        text = explain(error)
        # such as a loss that is not finite, and a full disk
        if text is None or isinstance(error, RuntimeError) or lacks_room(error) is not None:
            status = JOB_FAILED
        told = text or "".join(traceback.format_exception(error))
        if told in seen:
            continue
        seen.add(told)
        if text is None or wants_all:
            traceback.print_exception(error)
        where = f"{directory}: " if directory else ""
        for line in (text or f"the job failed with {type(error).__name__}: {error}").splitlines():
            print(f"lightning-peft: {where}{line}", file=sys.stderr)
        if hint:
            print(f"lightning-peft: {hint}", file=sys.stderr)
    return status


@contextmanager
def _for_hydra(args: Sequence[str]) -> Iterator[None]:
    """Make Hydra raise errors of the arguments instead of printing them and exiting."""
    before, full = sys.argv, os.environ.get(FULL_ERROR)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    sys.argv = [before[0], *_flags_first(args)]
    os.environ[FULL_ERROR] = "1"
    try:
        yield
    finally:
        sys.argv = before
        _set(FULL_ERROR, full)
        for handler in root.handlers:
            if handler not in handlers:
                handler.close()  # the log file of the last job
        root.handlers[:] = handlers
        root.setLevel(level)


@contextmanager
def _as_typed(typed: list[str], wants_all: bool) -> Iterator[None]:
    """Set the command line of a job as it was typed: DDP replays it for the other ranks."""
    before, full = sys.argv, os.environ.get(FULL_ERROR)
    sys.argv = typed
    _set(FULL_ERROR, "1" if wants_all else None)
    try:
        yield
    finally:
        sys.argv = before
        _set(FULL_ERROR, full)


def _set(name: str, value: Any) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
