"""Find the checkpoints that ``lightning-peft soup`` may average, and refuse the others."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_peft.cli.commands.soup_metric import judge_of
from lightning_peft.cli.comparing.runs import HANDED_OUT, PREPARED, Run, read_runs
from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.config.paths import no_directory
from lightning_peft.cli.runs.recorded import recorded_config
from lightning_peft.cli.runs.summary import FILE
from lightning_peft.cli.trust.words import trust_of
from lightning_peft.errors import PEFTError
from lightning_peft.files.plain_file import check_plain

if TYPE_CHECKING:
    import argparse

    from torch import Tensor

__all__ = ["Candidate", "candidates_of"]


@dataclass
class Candidate:
    """A checkpoint that may become a member.

    Attributes:
        path: The checkpoint.
        config: The config of its run.
        state: The trained tensors, by the names of the backbone.
        score: Its value of the metric that chooses the members.
    """

    path: Path
    config: Any
    state: dict[str, Tensor] = field(default_factory=dict)
    score: float = float("nan")


def candidates_of(options: argparse.Namespace) -> list[Candidate]:
    """Return the checkpoints, and refuse runs that cannot be averaged or compared.

    Args:
        options: The options of the command.

    Returns:
        Two or more candidates.

    Raises:
        ConfigError: With every problem, before anything is loaded.
    """
    problems = [f"expected a directory of runs, got {d}" for d in options.directories
                if not d.is_dir()]  # fmt: skip
    if wrong := no_directory(options.out):
        problems.append(f"--out: {wrong}")
    if (options.out / FILE).is_file():
        problems.append(
            f"--out: {options.out} is the directory of a run, whose adapter and config would be "
            "replaced. Choose another."
        )
    if options.top_k is not None and options.top_k < 1:
        problems.append(f"expected --top-k of at least 1, got {options.top_k}")
    if options.metric is not None:
        try:
            judge_of([], options.metric, "multiclass")
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    every, unreadable = read_runs(options.directories)
    runs: list[Run] = [run for run in every if run.completed]
    without = [f"{run.directory} ({run.status})" for run in every if not run.completed]
    without += [f"{path.parent} ({FILE} cannot be read)" for path in unreadable]
    trust = trust_of(options)
    found: list[Candidate] = []
    for run in runs:
        if (run.directory / "config.yaml").is_file():
            paths = sorted((run.directory / "checkpoints").glob("best*.ckpt"))
            try:
                config = recorded_config(run.directory, trust)
                found += [Candidate(check_plain(path, run.directory), config) for path in paths]
            except (PEFTError, OSError) as error:  # such as a link to nothing
                problems.append(str(error))
    if problems:
        raise ConfigError(problems)
    if len(found) < 2:
        raise ConfigError(
            [
                f"expected at least two checkpoints of finished runs, found {len(found)}. Name a "
                "sweep, several runs, or a run that was trained with callbacks/average=soup."
                + (f" Not finished: {', '.join(without)}." if without else "")
            ]
        )
    problems = [wrong for other in found[1:] for wrong in _no_company(found[0], other)]
    if problems:
        raise ConfigError(problems)
    for told in without:
        print(f"lightning-peft: left out, as it is not finished: {told}", file=sys.stderr)
    return found


def _no_company(first: Candidate, other: Candidate) -> Iterator[str]:
    """Yield why a checkpoint cannot be averaged or compared with the first."""
    model = _different(first.config.model, other.config.model)
    data = [key for key in _different(first.config.data, other.config.data)
            if key not in HANDED_OUT]  # fmt: skip
    images = [key for key in data if key not in PREPARED]
    if images:
        # one member may have been trained on the images that another was validated on
        held = " Fix the data in the sweep, such as data.seed=0." if "seed" in images else ""
        yield (
            f"{other.path} was trained on other data than {first.path} "
            f"({', '.join(images)} differ): no validation set is new to both.{held}"
        )
    if "backbone" in model or "backbone_kwargs" in model:
        yield f"{other.path} has another backbone than {first.path}."
    elif prepared := [key for key in data if key in PREPARED]:
        yield (
            f"{other.path} has its images prepared in another way than {first.path} "
            f"({', '.join(prepared)} differ), but a soup has only one way."
        )


def _different(one: Any, two: Any) -> list[str]:
    return sorted(key for key in {*one, *two} if one.get(key) != two.get(key))
