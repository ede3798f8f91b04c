"""Watch a sweep: check its directory, print a line for each job and the table at the end."""

from __future__ import annotations

import logging
import os
import shlex
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback

from lightning_peft.cli.config.errors import explain
from lightning_peft.cli.config.job_config import own_part
from lightning_peft.cli.runs.features import remove_features
from lightning_peft.cli.runs.occupied import is_other_rank, occupy, occupy_run
from lightning_peft.cli.runs.summary import numbers_of, write_json
from lightning_peft.cli.sweeps.earlier import (
    Earlier,
    check_checkpoint,
    check_checkpoints,
    earlier_run,
    refuse_finished,
)
from lightning_peft.cli.sweeps.extended import go_on_in
from lightning_peft.cli.sweeps.launcher_check import check_launcher
from lightning_peft.cli.sweeps.record import FILE, count_jobs, describe, swept
from lightning_peft.cli.sweeps.search.check import check_search
from lightning_peft.cli.sweeps.search.study import prepare_search
from lightning_peft.cli.sweeps.state import STATE
from lightning_peft.cli.trust.printable import printable
from lightning_peft.lightning.signals import LISTENER, Stopped

__all__ = ["WholeSweep", "job_line"]

log = logging.getLogger(__name__)

REFUSED = 2


@dataclass
class WholeSweep(Callback):
    """Watches a sweep, as a callback of Hydra (``hydra.callbacks``).

    A directory that holds another sweep is refused before any job starts. Each job begins with a
    line on the standard error, and the sweep ends with a comparison of all of its jobs, including
    those of earlier starts.
    """

    jobs: int | None = None
    seconds: list[float] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)
    swept: frozenset[str] = frozenset()
    is_search: bool = False
    _started: float = 0.0
    _counts: bool = True

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        """Check the directory, and count the jobs."""
        STATE.directory, STATE.failed = None, 0
        STATE.process = os.getpid()
        with _refusing():
            check_search(config)
            check_launcher(config)
            self.record = describe(config)
            directory = Path(config.hydra.sweep.dir)
            occupy(directory, "hydra.sweep.dir")
            go_on_in(directory, self.record, config)
            check_checkpoints(directory)
            standing = prepare_search(config)
            self.jobs = count_jobs(config, standing)
            self.swept = frozenset(swept(config))
            STATE.directory = directory  # it is this sweep's
            self.is_search = standing is not None

    def on_run_start(self, config: Any, **kwargs: Any) -> None:
        """Occupy and check the directory of a single run before Hydra writes there."""
        with _refusing():
            occupy_run(config)
            refuse_finished(config)
            check_checkpoint(config)

    def on_job_start(self, config: Any, **kwargs: Any) -> None:
        """Print the line of the job."""
        self._started = time.perf_counter()
        if not _in_sweep(config) or is_other_rank():  # torchrun runs the sweep in every rank
            return
        # from here on the directory is this sweep's; a command line that is refused leaves none
        # (the directory of the record, since a job may have a working directory of its own)
        write_json(Path(str(self.record["directory"])) / FILE, self.record)
        before = _found(config)
        words = [str(word) for word in config.hydra.overrides.task]
        apart = [word for word in words if word.partition("=")[0] in self.swept]
        line = job_line(config.hydra.job.num, self.jobs, apart or words, before, self.seconds)
        print(printable(line), file=sys.stderr, flush=True)
        self._counts = before.summary is None
        if before.summary is not None:
            total = numbers_of(before.summary.get("seconds")).get("total")
            self.seconds += [] if total is None else [total]

    def on_job_end(self, config: Any, job_return: Any, **kwargs: Any) -> None:
        """Record how long the job took."""
        if _in_sweep(config) and self._counts:
            self.seconds.append(time.perf_counter() - self._started)

    def on_multirun_end(self, config: Any, **kwargs: Any) -> None:
        """Print the comparison of the sweep's directory, and write it there."""
        from lightning_peft.cli.comparing.publish import compare

        if LISTENER.number is not None:  # the jobs of a launcher have ended without an exception
            raise Stopped(LISTENER.number)
        if is_other_rank():
            STATE.directory = None
            return
        directory = Path(config.hydra.sweep.dir)
        try:
            comparison = compare(directory)
        except Exception:
            STATE.directory = None
            raise
        STATE.directory = None
        # a trial that failed is not tried again: a search counts those of this start
        if comparison is not None and not self.is_search:
            STATE.failed = sum(len(row.failed) for row in comparison.rows)
            if STATE.failed:
                print(
                    f"lightning-peft: {STATE.failed} of its jobs failed. To try them again: "
                    f"lightning-peft continue {shlex.quote(str(directory))}",
                    file=sys.stderr,
                )
        if not STATE.failed:  # those that are tried again use them, too
            remove_features(directory)


@contextmanager
def _refusing() -> Iterator[None]:
    """End the command with the error in one line; Hydra would only warn and continue."""
    try:
        yield
    except Exception as error:
        log.debug("the command was refused", exc_info=error)
        told = explain(error) or f"{type(error).__name__}: {' '.join(str(error).split())}"
        for line in told.splitlines():
            print(f"lightning-peft: {printable(line)}", file=sys.stderr)
        raise SystemExit(REFUSED) from None


def job_line(
    number: int, jobs: int | None, words: Sequence[str], before: Earlier, seconds: Sequence[float]
) -> str:
    """Return the line that a job begins with.

    Args:
        number: The job's number, from 0.
        jobs: The number of jobs, if known.
        words: The overrides that distinguish the job from the others.
        before: What an earlier start left of it.
        seconds: How long each earlier job took.

    Returns:
        Such as ``"job 2 of 4: method=lora seed=1 (about 3 min 20 s left)"``.
    """
    from lightning_peft.cli.comparing.wording import duration

    line = f"job {number + 1}{f' of {jobs}' if jobs else ''}: {' '.join(words)}".rstrip(": ")
    if before.summary is not None:
        pruned = before.summary.get("status") == "pruned"
        return f"{line}: {'pruned' if pruned else 'done'} already"
    notes = ["from its last checkpoint"] if before.checkpoint is not None else []
    if jobs and seconds:
        left = statistics.fmean(seconds) * max(jobs - number, 1)
        notes.append(f"about {duration(left)} left")
    return f"{line} ({', '.join(notes)})" if notes else line


def _found(config: Any) -> Earlier:
    """Return what an earlier start left; the job itself reports errors in it."""
    try:
        return earlier_run(own_part(config))
    except Exception:
        return Earlier()


def _in_sweep(config: Any) -> bool:
    from hydra.types import RunMode

    return config.hydra.mode == RunMode.MULTIRUN
