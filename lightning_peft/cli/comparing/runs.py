"""Read the runs below directories, each from its ``summary.json``.

A summary may come from another version or another program, or be cut off: a value of the wrong type
counts as missing.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_peft.cli.runs.occupied import holder_of
from lightning_peft.cli.runs.summary import FILE, mapping_of, numbers_of
from lightning_peft.cli.trust.printable import printable
from lightning_peft.files.plain_file import read_text

__all__ = ["HANDED_OUT", "PREPARED", "Run", "labelled", "read_runs", "run_of"]

SET_NOTHING_APART = ("method=", "seed=", "output_dir=", "name=", "logger=", "logger.", "baselines=")
"""Overrides that are shown elsewhere, or do not change the result of a run."""

HANDED_OUT = frozenset(
    {
        *("augment", "batch_size", "cache", "drop_last", "eval_batch_size", "flip", "flip_safe"),
        *("num_workers", "packing", "pin_memory", "steps_per_epoch", "verify"),
    }
)
"""Keys of ``data`` that say how images are handed out: which they are, and their labels, is the
same."""

PREPARED = frozenset(
    {
        *("backbone", "channels", "chat_template", "image_size", "interpolation", "max_length"),
        *("mean", "prefix", "std", "value_range"),
    }
)
"""Keys of ``data`` that define how the same images are prepared for a backbone."""

ESCAPED = re.compile(r"\\([()\[\]{}:=, ])")

NOUNS = ("images", "texts")

STATES = ("completed", "pruned", "failed", "running", "interrupted", "unfinished")


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        directory: The directory of its files.
        source: The given directory in which it was found.
        status: ``"completed"``, ``"pruned"`` (stopped by the pruner of a search), ``"failed"``,
            ``"running"``, ``"interrupted"`` (its process is gone) or ``"unfinished"`` (it runs, or
            ran, on another machine or for another user).
        method: The name of the method.
        seed: The seed, if known.
        overrides: The overrides other than the method and the seed, sorted.
        metrics: The measured values, by the name under which they were logged.
        parameters: Trained and total parameters.
        bytes: Sizes of the files.
        seconds: Times.
        peak_memory: Bytes: allocated on the GPU, or else resident in the process.
        on_gpu: Whether the peak is that of the GPU.
        images: The number of images or texts in each split.
        noun: ``"images"`` or ``"texts"``.
        baselines: Accuracy of the reference points.
        objective: The metric of the sweeper, or the one that chose the checkpoint.
        objectives: For a search with several: the name, the value and the direction of each.
        steps: The number of optimizer steps, if known.
        intervals: The 95 % interval of each metric of the test, over its images.
        task: The task of the labels.
        monitor: The metric that chose the checkpoint; ``None`` if nothing did, or it is not known.
        error: The error of a failed run.
        started: Seconds since the epoch, if known.
    """

    directory: Path
    source: Path
    status: str
    method: str
    seed: int | None = None
    overrides: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    parameters: Mapping[str, float] = field(default_factory=dict)
    bytes: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_memory: float | None = None
    on_gpu: bool = False
    images: Mapping[str, int] = field(default_factory=dict)
    noun: str = NOUNS[0]
    baselines: Mapping[str, float] = field(default_factory=dict)
    objective: str | None = None
    objectives: tuple[tuple[str, float, str], ...] = ()
    steps: int | None = None
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    task: str = "multiclass"
    monitor: str | None = None
    error: str = ""
    started: float | None = None

    @property
    def completed(self) -> bool:
        """Whether the run finished."""
        return self.status == "completed"

    @property
    def about_data(self) -> tuple[str, ...]:
        """The overrides that choose the data."""
        return tuple(word for word in self.overrides if word.startswith(("data", "shots=")))

    def told(self) -> str:
        """Return the state of an unfinished run in words."""
        who = "no seed" if self.seed is None else f"seed {self.seed}"
        if self.status == "failed":
            return f"{who}: {self.error or 'unknown error'} (in {printable(str(self.directory))})"
        if self.status == "running" and self.started is not None:
            minutes = max(0.0, time.time() - self.started) / 60
            return f"{who}: running for {minutes:.0f} min"
        return f"{who}: {self.status}"


def labelled(overrides: Sequence[str]) -> tuple[str, ...]:
    """Return the overrides that decide which labelled images there are.

    Rows that differ in one of them are not compared. An unknown key (of a user's own data module)
    is assumed to choose the images.
    """
    return tuple(word for word in overrides if _chooses(word))


def _chooses(override: str) -> bool:
    group, _, rest = override.partition("=")[0].partition(".")
    key = rest.partition(".")[0]
    return group == "shots" or (group == "data" and key not in HANDED_OUT | PREPARED)


def read_runs(directories: Sequence[Path]) -> tuple[list[Run], list[Path]]:
    """Read every ``summary.json`` below directories.

    Args:
        directories: Directories of sweeps, or above them; a run below two of them is read once.

    Returns:
        The runs, in the order of the directories and of their paths; and the files that are not
        summaries.
    """
    runs: list[Run] = []
    unreadable: list[Path] = []
    seen: set[Path] = set()
    for source in directories:
        for path in sorted(source.rglob(FILE), key=_natural):
            resolved = path.resolve()
            if resolved in seen:
                continue
            seen.add(resolved)
            run = run_of(_load(path), path.parent, source)
            unreadable.append(path) if run is None else runs.append(run)
    return runs, unreadable


def run_of(summary: Any, directory: Path, source: Path | None = None) -> Run | None:
    """Return the run that a summary describes.

    Args:
        summary: The content of a ``summary.json``.
        directory: The directory of the file.
        source: The given directory in which it was found; the run's own by default.

    Returns:
        The run, or ``None`` if the content is not a summary.
    """
    if not isinstance(summary, Mapping) or summary.get("status") not in STATES:
        return None
    if "method" not in summary:
        return None
    method = mapping_of(summary["method"]).get("name")
    words = summary.get("overrides")
    overrides = (
        [_as_typed(printable(str(word))) for word in words] if isinstance(words, list) else []
    )
    efficiency = numbers_of(summary.get("efficiency"))
    gpu = efficiency.get("peak_cuda_bytes")
    process = mapping_of(summary.get("process"))
    objective = mapping_of(summary.get("objective"))
    seed = summary.get("seed")
    return Run(
        directory=directory,
        source=directory if source is None else source,
        status=_status(str(summary["status"]), process, directory),
        method=printable(str(method)),
        seed=seed if isinstance(seed, int) and not isinstance(seed, bool) else None,
        overrides=tuple(sorted(o for o in overrides if not o.startswith(SET_NOTHING_APART))),
        metrics=numbers_of(summary.get("metrics")),
        parameters=numbers_of(summary.get("parameters")),
        bytes=numbers_of(summary.get("bytes")),
        seconds=numbers_of(summary.get("seconds")),
        peak_memory=efficiency.get("peak_process_rss_bytes") if gpu is None else gpu,
        on_gpu=gpu is not None,
        images={name: int(count) for name, count in numbers_of(summary.get("images")).items()},
        noun=str(summary["noun"]) if summary.get("noun") in NOUNS else NOUNS[0],
        baselines=numbers_of(summary.get("baselines")),
        objective=name if isinstance(name := objective.get("name"), str) else None,
        objectives=_objectives(summary.get("objectives")),
        steps=steps if isinstance(steps := summary.get("steps"), int) else None,
        intervals=_intervals(summary.get("intervals_95")),
        task=str(summary.get("task") or "multiclass"),
        monitor=name if isinstance(name := summary.get("monitor"), str) else None,
        error=" ".join(map(printable, str(summary.get("error") or "").splitlines())),
        started=numbers_of(process).get("started"),
    )


def _as_typed(override: str) -> str:
    """Return an override in one form, whether a sweep or a single run had it.

    The jobs of a sweep escape what Hydra's grammar reserves, and rewrite words and numbers
    (``test=False``, ``lr=0.001``); a single run keeps what was typed (``test=false``, ``lr=1e-3``).
    """
    key, sign, value = override.lstrip("+").partition("=")
    if not value.startswith(("'", '"')):
        value = _in_one_way(ESCAPED.sub(r"\1", value))
    return f"{key}{sign}{value}"


def _in_one_way(value: str) -> str:
    if value.lower() in ("true", "false", "null"):
        return value.lower()
    try:
        int(value)
    except ValueError:
        with suppress(ValueError):
            return repr(float(value))
    return value


def _load(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError, RecursionError):
        return None


def _status(status: str, process: Mapping[str, Any], directory: Path) -> str:
    """Return the status of a run; a killed run is found by its directory's missing process."""
    if status != "running":
        return status
    holder = holder_of(directory)
    if (process if holder is None else holder).get("host") != socket.gethostname():
        return "unfinished"
    return "interrupted" if holder is None else "running"


def _objectives(value: Any) -> tuple[tuple[str, float, str], ...]:
    """Return the objectives of a search with several, all of them or none."""
    found = []
    for item in value if isinstance(value, list) else []:
        one = mapping_of(item)
        number = numbers_of(one).get("value")
        if number is None or one.get("direction") not in ("maximize", "minimize"):
            return ()
        found.append((str(one.get("name")), number, str(one["direction"])))
    return tuple(found)


def _intervals(value: Any) -> dict[str, tuple[float, float]]:
    """Return the pairs of finite numbers of a mapping."""
    found = {}
    for key, item in mapping_of(value).items():
        ends = numbers_of(dict(enumerate(item))) if isinstance(item, list) else {}
        if len(ends) == 2 and len(item) == 2:
            found[str(key)] = (ends["0"], ends["1"])
    return found


def _natural(path: Path) -> tuple[Any, ...]:
    """Return a sort key that puts ``10_lora`` after ``9_lora``."""
    return tuple(
        (0, int(head), part) if (head := part.partition("_")[0]).isdecimal() else (1, 0, part)
        for part in path.parts
    )
