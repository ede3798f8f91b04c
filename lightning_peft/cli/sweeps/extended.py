"""Extend a sweep: the same directory, more values, and only the new jobs run.

Hydra numbers the jobs of a sweep by their place among the combinations, and the directory of a job
begins with its number. With more values the places move. So ``sweep.json`` keeps the jobs in the
order of their numbers, and a later start gives each job its old number; new jobs come after.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.config.job_config import as_written, config_in
from lightning_peft.cli.sweeps.record import (
    check_directory,
    check_kind,
    read_record,
    swept,
    told,
    what_to_do,
)

__all__ = ["go_on_in", "match"]

BASIC = ".BasicSweeper"
SWEEPER = "hydra_plugins.lightning_peft_sweeper.OrderedSweeper"
SHOWN = 4

Job = Sequence[str]
"""The overrides of a job."""


def go_on_in(directory: Path, record: dict[str, Any], config: Any) -> None:
    """Match a sweep with the jobs in its directory, or refuse the directory.

    Args:
        directory: The directory of the sweep.
        record: The result of ``describe``; the jobs are added to it.
        config: The config of the sweep, whose sweeper gets the order of the jobs if it is not
            Hydra's own.

    Raises:
        ConfigError: If the directory holds jobs that are not in this sweep.
    """
    check_kind(directory, record)
    if not str(config.hydra.sweeper.get("_target_", "")).endswith(BASIC) or not all(
        swept(config).values()  # 0 is for values that this sweeper cannot list
    ):
        check_directory(directory, record)
        return
    jobs = _jobs(record)
    before = read_record(directory)
    order = list(range(len(jobs)))
    if before is not None:
        earlier = before.get("jobs") or _jobs(before)
        places = match(earlier, jobs)
        places = _by_config(config, earlier, jobs, places) if None in places else places
        if None in places:
            lost = [job for job, place in zip(earlier, places, strict=True) if place is None]
            raise ConfigError([_refusal(directory, before, record, lost)])
        found = [place for place in places if place is not None]
        order = found + [place for place in order if place not in set(found)]
        if len(jobs) > len(earlier):
            more = len(jobs) - len(earlier)
            print(
                f"lightning-peft: {directory} is extended: {more} new job{'s' * (more > 1)} in "
                f"addition to the {len(earlier)} that it has",
                file=sys.stderr,
            )
    record["jobs"] = [list(jobs[place]) for place in order]
    if order != sorted(order):
        _tell(config.hydra, order)


def match(earlier: Sequence[Job], jobs: Sequence[Job]) -> list[int | None]:
    """Find earlier jobs among the current ones by their overrides, in any order.

    Args:
        earlier: The overrides of each earlier job.
        jobs: The overrides of each current job.

    Returns:
        The place of each earlier job among the current ones, or ``None`` if it is missing.
    """
    places: dict[frozenset[str], list[int]] = {}
    for place, job in reversed(list(enumerate(jobs))):
        places.setdefault(frozenset(job), []).append(place)
    # a value may have been typed twice: equal jobs have a place each
    return [own.pop() if (own := places.get(frozenset(job))) else None for job in earlier]


def _jobs(record: dict[str, Any]) -> list[list[str]]:
    """Return the overrides of the jobs of a sweep, as Hydra numbers them."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    words = [f"{key}={value}" for key, value in (record.get("params") or {}).items()]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    overrides = parser.parse_overrides([*words, *record["overrides"]])
    ((*jobs,),) = BasicSweeper.split_arguments(overrides, None)
    return jobs


def _by_config(
    config: Any, earlier: Sequence[Job], jobs: Sequence[Job], places: Sequence[int | None]
) -> list[int | None]:
    """Match the other jobs by their composed configs, since a default may be written out."""
    taken = {place for place in places if place is not None}
    configs = {place: _composed(config, job) for place, job in enumerate(jobs)
               if place not in taken}  # fmt: skip
    found = list(places)
    for number, job in enumerate(earlier):
        if found[number] is None:
            wanted = _composed(config, job)
            same = (
                None if wanted is None else next((p for p in configs if configs[p] == wanted), None)
            )
            if same is not None:
                found[number] = same
                del configs[same]
    return found


def _composed(config: Any, job: Job) -> dict[str, Any] | None:
    """Return the composed config of a job; ``None`` if it cannot be composed."""
    from hydra.core.global_hydra import GlobalHydra

    from lightning_peft.cli.sweeps.earlier import identity

    try:
        full = GlobalHydra.instance().config_loader().load_sweep_config(config, list(job))
        with config_in("directory", full) as own:  # the same for all
            return identity(as_written(own))
    except Exception:
        return None


def _tell(hydra: Any, order: list[int]) -> None:
    from omegaconf import open_dict, read_write

    with read_write(hydra), open_dict(hydra.sweeper):
        hydra.sweeper._target_ = SWEEPER
        hydra.sweeper.order = order


def _refusal(
    directory: Path, before: dict[str, Any], record: dict[str, Any], lost: Sequence[Job]
) -> str:
    shown = "; ".join(" ".join(job) for job in lost[:SHOWN])
    more = f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else ""
    return (
        f"{directory} holds another sweep: {told(before)}; this one is {told(record)}, which lacks "
        f"the jobs: {shown}{more}. A sweep can be extended by more values if everything else stays "
        f"the same. {what_to_do(directory)}"
    )
