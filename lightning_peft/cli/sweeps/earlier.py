"""Find what an earlier start left in the directory of a job: nothing, a part, or a finished job.

A job is identified by its config. A directory that holds a job of another config is refused.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from lightning_peft.cli.config.auto_rate import with_found_rate
from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.config.job_config import as_written, asked, config_in, place_key
from lightning_peft.cli.runs.checkpoints import check_moved, check_whole
from lightning_peft.cli.runs.occupied import is_other_rank
from lightning_peft.cli.runs.places import is_within
from lightning_peft.cli.runs.recorded import LAST_KEY, read_config
from lightning_peft.cli.runs.summary import numbers_of, read_summary
from lightning_peft.errors import shown

__all__ = [
    "ABSENT",
    "CONFIG",
    "LAST",
    "Earlier",
    "changed",
    "changes_since",
    "check_checkpoint",
    "check_checkpoints",
    "earlier_run",
    "identity",
    "is_of_another_start",
    "refuse_finished",
]

CONFIG = "config.yaml"
"""Written by a job before it trains: its config, resolved."""

LAST = "checkpoints/last.ckpt"
"""The checkpoint to resume from, below the job's directory (conf/callbacks/default.yaml)."""

FINISHED = ("completed", "pruned")

SHOWN = 5

ABSENT = object()

HOW_TO_RESUME = ("schedule.on_resume", "callbacks.schedule.on_resume")
"""Keys that say how a job goes on, and not which job it is."""

AS_BEFORE = {
    "schedule.replace": False,
    "callbacks.schedule.replace": False,
    "callbacks.peft.add_to_optimizer": False,
    "callbacks.peft.checkpoints": "slim",
}
"""Keys that earlier releases lack, and the values that do as they did."""

OF_THE_END = ("grace.", "callbacks.signals.")
"""What decides how a job is stopped, and nothing of what it computes."""


class Earlier(NamedTuple):
    """What an earlier start of a job left.

    Attributes:
        summary: The summary of a job that finished or was stopped by a pruner; otherwise ``None``.
        checkpoint: The complete last checkpoint of an unfinished job, if it has one.
    """

    summary: dict[str, Any] | None = None
    checkpoint: Path | None = None

    @property
    def objective(self) -> float | list[float] | None:
        """The result of the job for the sweeper."""
        summary = self.summary or {}
        several = summary.get("objectives")
        if isinstance(several, list) and several:
            return [numbers_of(one).get("value", float("nan")) for one in several]
        return numbers_of(summary.get("objective")).get("value")


def earlier_run(cfg: Any) -> Earlier:
    """Return what an earlier start left in the directory of a job.

    Args:
        cfg: The job's config, with its ``output_dir``.

    Returns:
        What an earlier start of this very job left.

    Raises:
        ConfigError: If the directory holds a job of another config (every difference is listed), or
            a config that is not whole.
    """
    directory = Path(cfg.output_dir)
    recorded = directory / CONFIG
    if not recorded.is_file():
        return Earlier()
    changes = changes_since(recorded, cfg)
    if changes:
        raise ConfigError(
            [
                f"{directory} holds a job of another config: {changes}. Choose another "
                "hydra.sweep.dir, or remove that directory."
            ]
        )
    summary = read_summary(directory)
    if summary.get("status") in FINISHED:
        return Earlier(summary=summary)
    last = directory / LAST
    # a checkpoint that was being copied when the process was killed has no end
    return Earlier(checkpoint=last if last.is_file() and zipfile.is_zipfile(last) else None)


def refuse_finished(config: Any) -> None:
    """Refuse to overwrite a finished run with a single run of another config.

    The same run may be repeated, a run that did not finish may be replaced, and a run may resume
    from a checkpoint of its own directory with other settings.

    Args:
        config: The config of the run, its ``hydra`` part included.

    Raises:
        ConfigError: If the directory holds such a run; the message lists the differences.
    """
    if is_other_rank():  # the directory is that of its run
        return
    with asked(config):
        place = Path(config.hydra.run.dir).absolute()
    with config_in(place, config) as cfg:
        directory, resume = Path(cfg.output_dir), cfg.get("resume")
        recorded = directory / CONFIG
        if read_summary(directory).get("status") not in FINISHED or not recorded.is_file():
            return
        if resume is not None and directory.resolve() in Path(str(resume)).resolve().parents:
            return
        changes = changes_since(recorded, cfg)
    if changes:
        raise ConfigError(
            [
                f"{directory} holds a finished run of another config: {changes}. Choose another "
                f"{place_key(config)}, or remove that directory."
            ]
        )


def is_of_another_start(cfg: Any) -> bool:
    """Whether the directory of a job still holds what a start with other settings left there.

    A run that was to go on otherwise than before, and was refused, has written nothing there, and
    what is there stays.

    Args:
        cfg: The config of the job.
    """
    directory, resume = Path(cfg.output_dir), cfg.get("resume")
    if resume is None or not is_within(str(resume), directory):
        return False
    recorded = directory / CONFIG
    return recorded.is_file() and bool(changes_since(recorded, cfg))


def check_checkpoint(config: Any) -> None:
    """Refuse to resume a single run in its directory if its best checkpoint is not there.

    Args:
        config: The config of the run, its ``hydra`` part included.

    Raises:
        ConfigError: If it is missing, or the checkpoint to resume from is.
    """
    resume = config.get("resume")
    if resume is None or is_other_rank():
        return
    with asked(config):
        place = Path(config.hydra.run.dir).absolute()
    with config_in(place, config) as cfg:
        path, directory = Path(str(cfg.resume)), Path(cfg.output_dir)
    if str(path) in ("last", "best", "hpc") or ":" in str(path):  # Lightning's words, an address
        return
    check_whole(path)
    if is_within(path, directory):
        _check_moved([path])


def check_checkpoints(directory: Path) -> None:
    """Refuse a sweep if an unfinished job, that would go on, is without its best checkpoint.

    Args:
        directory: The directory of the sweep.

    Raises:
        ConfigError: With every problem found.
    """
    _check_moved(
        [
            path
            for path in sorted(directory.glob(f"*/{LAST}"))
            if read_summary(path.parents[1]).get("status") not in FINISHED
            and zipfile.is_zipfile(path)
        ]
    )


def _check_moved(paths: Sequence[Path]) -> None:
    problems: list[str] = []
    for path in paths:
        try:
            check_moved(path)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)


def changes_since(recorded: Path, cfg: Any) -> str:
    """Return the differences between a recorded config and the current one; ``""`` for none."""
    now = as_written(with_found_rate(cfg, recorded.parent))
    before = _recorded(recorded, now)
    changes = _changes(identity(before), identity(now))
    if changes and (task := _task_of(before)) is not None:
        from lightning_peft.cli.config.task import fit_to_task

        with suppress(ConfigError):  # what a job leaves is fitted to the task of its data
            fit_to_task(now, task)
            changes = _changes(identity(before), identity(now))
    more = [f"and {len(changes) - SHOWN} more"] if len(changes) > SHOWN else []
    return "; ".join([*changes[:SHOWN], *more])


def _recorded(path: Path, now: Any) -> Any:
    """Return a recorded config; refuse one that is cut off, which would seem to be another's."""
    config, reason = read_config(path, LAST_KEY if LAST_KEY in now else None)
    if not reason:
        return config
    raise ConfigError(
        [
            f"{path}: expected the whole config that a job wrote, got {path.stat().st_size:,} "
            f"bytes of one: {reason}, so that nobody can say whether {path.parent} is of this job. "
            "Copy the file again if you have it elsewhere, or remove that directory."
        ]
    )


def _task_of(config: Any) -> str | None:
    """Return the task that a config was fitted to, if it says so."""
    model: Any = config.get("model") or {}
    if not isinstance(model, Mapping):  # damaged: the differences say so
        return None
    from lightning_peft.cli.config.task import LANGUAGE

    target = str(model.get("_target_"))
    if target.endswith("Regressor"):
        return "regression"
    task = LANGUAGE.get(target, model.get("task"))
    return None if task is None else str(task)


def identity(config: Any) -> dict[str, Any]:
    """Return the values by dotted keys that make a job, without the path of its directory."""
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(config)
    directory = str(plain.get("output_dir"))
    resume = str(plain.get("resume") or "")
    # the job goes on with a checkpoint of its own, by whatever links its directory is reached
    if resume and (resume.startswith(directory) or is_within(resume, directory)):
        plain["resume"] = None
    return {
        key: _without(directory, value)
        for key, value in _leaves(plain)
        if key not in HOW_TO_RESUME
        and not f"{key}.".startswith(OF_THE_END)
        and AS_BEFORE.get(key, ABSENT) != value
    }


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def _without(directory: str, value: Any) -> Any:
    return value.replace(directory, "<directory>") if isinstance(value, str) else value


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return the keys whose values differ, with both values; ``ABSENT`` where there is none."""
    found = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key, ABSENT), now.get(key, ABSENT)
        if old != new or type(old) is not type(new):
            found.append((key, old, new))
    return found


MOST_SHOWN = 400
"""The largest number of characters of a setting in a message."""


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{key} {'was not there' if old is ABSENT else f'was {shown(old, MOST_SHOWN)}'}, "
        f"{'now is not there' if new is ABSENT else f'now {shown(new, MOST_SHOWN)}'}"
        for key, old, new in changed(before, now)
    ]
