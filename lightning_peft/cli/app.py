"""Serve ``lightning-peft`` without a command: compose the config and train, once or as a sweep."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_peft.cli.config.errors import explain
from lightning_peft.cli.config.paths import conf_dir
from lightning_peft.cli.jobs.job import Failure, Value, run_job
from lightning_peft.cli.runs.parent import under_a_parent
from lightning_peft.cli.sweeps.state import STATE
from lightning_peft.cli.sweeps.stopping import jobs, say_how_to_go_on
from lightning_peft.errors import near
from lightning_peft.lightning.signals import LISTENER, Stopped, exit_status
from lightning_peft.system.atomic import lacks_room

if TYPE_CHECKING:
    from omegaconf import DictConfig

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

log = logging.getLogger(__name__)


def main(args: Sequence[str]) -> int:
    """Compose and train.

    Args:
        args: Hydra's flags and overrides.

    Returns:
        The exit status.
    """
    STATE.failed, STATE.run = 0, None  # of an earlier start in this process
    wrong = _unknown_flag(args)
    if wrong is not None:
        print(f"lightning-peft: {wrong}", file=sys.stderr)
        return USAGE_ERROR
    with under_a_parent(args), LISTENER.listening():
        LISTENER.jobs = jobs
        LISTENER.last_words.append(lambda number: say_how_to_go_on(args, number))
        return _compose_and_train(args)


def _compose_and_train(args: Sequence[str]) -> int:
    import hydra

    typed = list(sys.argv)
    wants_all = os.environ.get(FULL_ERROR) == "1"
    failures: list[Failure] = []

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    def app(cfg: DictConfig) -> Value:
        with _as_typed(typed, wants_all):
            return run_job(cfg, args, failures)

    from lightning_peft.cli.runs.occupied import vacate

    try:
        try:
            with _for_hydra(args):
                app()
        finally:
            vacate()
    except Stopped as stop:
        return _stopped(args, stop.number, int(stop.code or 0))
    except SystemExit as stop:  # argparse refuses a flag, --hydra-help is done, or Ctrl-C
        say_how_to_go_on(args)
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning ends a training with 1
            return INTERRUPTED
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        say_how_to_go_on(args)
        return INTERRUPTED
    except Exception as error:
        if LISTENER.number is not None:  # such as workers that got the signal as well, and died
            log.debug("after a signal", exc_info=error)
            return _stopped(args, LISTENER.number)
        status = _report([*failures, Failure(error)], wants_all)
        if isinstance(error, RuntimeError):  # such as a process that died
            _compare_what_there_is()
            say_how_to_go_on(args)
        return status
    if LISTENER.number is not None:  # it came when all was done
        return _stopped(args, LISTENER.number)
    status = _report(failures, wants_all) if failures else 0
    if STATE.directory is not None and any(_is_interrupted(failure) for failure in failures):
        say_how_to_go_on(args)
    return JOB_FAILED if _failed_in_sweep(failures) else status


def _stopped(args: Sequence[str], number: int, status: int | None = None) -> int:
    say_how_to_go_on(args, number)
    return exit_status(number) if status is None else status


def _is_interrupted(failure: Failure) -> bool:
    """Whether a job can go on when there is room on the disk."""
    from lightning_peft.cli.runs.summary import read_summary

    if not failure.directory:
        return lacks_room(failure.error) is not None
    # one of its own process has told it there
    return read_summary(Path(failure.directory)).get("status") in ("interrupted", "running")


def _failed_in_sweep(failures: Sequence[Failure]) -> bool:
    """Whether a job of a sweep failed, in this process or in one of another launcher."""
    return STATE.failed > 0 or any(failure.directory for failure in failures)


def _compare_what_there_is() -> None:
    """Show the table of a sweep that Hydra aborted, since its other jobs have run."""
    from lightning_peft.cli.comparing.publish import compare

    directory = STATE.directory
    if directory is not None:
        compare(directory)


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
