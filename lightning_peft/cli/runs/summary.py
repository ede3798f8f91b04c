"""Read and write ``summary.json``: what one run was and how it ended."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_peft.cli.config.errors import explain
from lightning_peft.cli.config.objectives import better
from lightning_peft.cli.runs.occupied import holder_of, is_other_rank
from lightning_peft.evaluation.metric_names import MAIN
from lightning_peft.files.plain_file import read_text
from lightning_peft.system.atomic import lacks_room, written_whole

__all__ = [
    "FILE",
    "describe_run",
    "finite",
    "mapping_of",
    "numbers_of",
    "objective",
    "read_summary",
    "record_death",
    "record_failure",
    "record_interrupted",
    "told_objectives",
    "write_json",
    "write_summary",
    "write_text",
]

FILE = "summary.json"
FORMAT = 1
MAINS = tuple(f"val/{metric}" for metric in dict.fromkeys(MAIN.values()))
PACKAGES = ("lightning-peft", "torch", "lightning", "peft", "timm", "torchmetrics", "hydra-core")


def write_text(path: Path, text: str) -> None:
    """Write a file in one step: a crash leaves the old file or the new one, never a part."""
    content = text.encode("utf-8", "backslashreplace")  # names of files may be no text
    with written_whole(path, len(content)) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: Any) -> None:
    """Write JSON in one step; a number that JSON does not have (NaN, infinity) becomes ``null``."""
    write_text(path, json.dumps(finite(content), indent=2, allow_nan=False) + "\n")


def describe_run(cfg: Any) -> dict[str, Any]:
    """Return the description of a job, from its config and from Hydra's.

    Args:
        cfg: The job's config.

    Returns:
        The part of the summary that is known before anything runs.
    """
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    choices: dict[str, Any] = {}
    overrides: list[str] = []
    if HydraConfig.initialized():
        hydra = HydraConfig.get()
        runtime: Any = OmegaConf.to_container(hydra.runtime.choices)
        choices = {key: value for key, value in runtime.items() if not key.startswith("hydra/")}
        overrides = list(hydra.overrides.task)
    return {
        "format": FORMAT,
        "method": {"name": choices.get("method")},
        "seed": cfg.get("seed"),
        "choices": choices,
        "overrides": overrides,
        "versions": {"python": platform.python_version(), **_versions()},
    }


def objective(name: str | None, metrics: Mapping[str, float]) -> tuple[str | None, float | None]:
    """Return the objective of a job and its value, for a sweeper.

    Args:
        name: The metric; by default the one that chose the checkpoint, or the main one of the task
            in validation.
        metrics: What was measured.

    Returns:
        The metric and its value, each ``None`` if there is none.
    """
    if name is None:
        names = [metric for metric in metrics if metric.startswith("val/")]
        main = [found for found in MAINS if found in names]
        name = next(iter(main + names), None)
    return name, None if name is None else metrics.get(name)


def told_objectives(
    names: Sequence[str], measured: Mapping[str, float], directions: Sequence[str]
) -> dict[str, Any]:
    """Return the parts of a summary with the objectives for a sweeper.

    Args:
        names: The objectives that the config names.
        measured: Metrics and costs.
        directions: The directions of the search that the run is a trial of.

    Returns:
        ``objective``, the first; and ``objectives``, all of them, if there are several.
    """
    name, value = objective(names[0] if names else None, measured)
    parts: dict[str, Any] = {"objective": {"name": name, "value": value}}
    if len(names) > 1:
        ways = directions or [better(name) for name in names]
        parts["objectives"] = [
            {"name": name, "value": measured.get(name), "direction": way}
            for name, way in zip(names, ways, strict=True)
        ]
    return parts


def write_summary(directory: Path, cfg: Any, *, status: str, **parts: Any) -> dict[str, Any]:
    """Write ``summary.json`` of a run.

    Args:
        directory: The run's directory.
        cfg: The run's config.
        status: ``"running"``, ``"completed"``, ``"pruned"``, ``"interrupted"`` or
            ``"failed"``.
        **parts: What was measured; a mapping is merged into the part of that name.

    Returns:
        What was written.
    """
    summary = {"status": status, **describe_run(cfg)}
    for key, part in parts.items():
        before = summary.get(key)
        summary[key] = {**before, **part} if isinstance(before, Mapping) else part
    write_json(directory / FILE, summary)
    return summary


def record_failure(cfg: Any, error: BaseException) -> None:
    """Write the summary of a failed job; never raise, since another error is being handled.

    A job that a full disk ended is interrupted: it can go on when there is room.

    Args:
        cfg: The config of the job.
        error: What ended it.
    """
    if int(os.environ.get("LOCAL_RANK") or 0) > 0:
        return
    try:
        told = explain(error) or f"{type(error).__name__}: {error}"
        # one that was refused because another process is at work there has nothing to say of that
        if holder_of(Path(cfg.output_dir)) is None:
            status = "failed" if lacks_room(error) is None else "interrupted"
            write_summary(Path(cfg.output_dir), cfg, status=status, error=told)
    except Exception:  # the config itself may be what is wrong
        return


def record_interrupted(cfg: Any) -> None:
    """Write that a run was interrupted; never raise, since the process is about to end.

    A run that is complete by then stays so.

    Args:
        cfg: The config of the run.
    """
    if is_other_rank():
        return
    try:
        directory = Path(cfg.output_dir)
        if read_summary(directory).get("status") == "running" and holder_of(directory) is None:
            write_summary(directory, cfg, status="interrupted")
    except Exception:
        return


def read_summary(directory: Path) -> dict[str, Any]:
    """Return the summary of a run; ``{}`` if there is none, or none that can be read.

    Args:
        directory: The directory of the run.
    """
    try:
        content = json.loads(read_text(directory / FILE))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def mapping_of(value: Any) -> Mapping[str, Any]:
    """Return a part of a summary that should be a mapping; ``{}`` if it is none."""
    return value if isinstance(value, Mapping) else {}


def numbers_of(value: Any) -> dict[str, float]:
    """Return the finite numbers of a part of a summary that should be a mapping."""
    found = {}
    for key, item in mapping_of(value).items():
        if isinstance(item, int | float) and not isinstance(item, bool):
            try:
                number = float(item)
            except OverflowError:
                continue
            if math.isfinite(number):
                found[str(key)] = number
    return found


def record_death(directory: Path, cfg: Any, told: str) -> None:
    """Write the summary of a job whose process died, unless the job could still do so itself.

    Args:
        directory: The directory of the job.
        cfg: The config of the job.
        told: How it ended.
    """
    written = read_summary(directory).get("status") in ("failed", "interrupted")
    if not written and "seed" in cfg and holder_of(directory) is None:
        write_summary(directory, cfg, status="failed", error=told)


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def finite(value: Any) -> Any:
    """Return a value with ``None`` for NaN and infinities, and lists for tuples."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and value - value != 0.0:  # infinity and NaN
        return None
    return value
