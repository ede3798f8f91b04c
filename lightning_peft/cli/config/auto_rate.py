"""``lr=auto``: what it is, where the search begins, and what a run has found."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from lightning_peft.cli.config.paths import conf_dir

__all__ = [
    "AUTO",
    "FILE",
    "START",
    "asks_for_a_search",
    "begun",
    "found_in",
    "problems_of_a_search",
    "start_of",
    "with_found_rate",
]

AUTO = "auto"
"""The value of ``lr`` that stands for a search."""

FILE = "rate.json"
"""What a search found, in the directory of its run."""

METHOD = "lora"
"""The choice of the group ``method`` by default (conf/config.yaml)."""

START = 1e-3
"""Where a search begins if the method has no rate of its own."""


def asks_for_a_search(cfg: Any) -> bool:
    """Whether the rate of a config is to be found."""
    from omegaconf.errors import OmegaConfBaseException

    try:
        return bool(cfg.get("lr") == AUTO)
    except OmegaConfBaseException:  # it needs a value that is missing, which the checks tell
        return False


def start_of(method: str | None) -> float:
    """Return the rate of a method's config, or :data:`START`.

    Args:
        method: The choice of the group ``method``.
    """
    path = conf_dir() / "method" / f"{method}.yaml"
    if not path.is_file():  # a method of the user's own
        return START
    found = re.search(r"^lr: (\S+)", path.read_text(encoding="utf-8"), flags=re.M)
    return float(found[1]) if found else START


def begun(cfg: Any, overrides: Sequence[str] = ()) -> str | None:
    """Put the rate that a search begins with into a config that asks for one.

    Args:
        cfg: The composed config of a command that trains nothing; changed in place.
        overrides: What it was composed of.

    Returns:
        A line that says so; ``None`` if the config has a rate.
    """
    if not asks_for_a_search(cfg):
        return None
    methods = [word.partition("=")[2] for word in overrides if word.startswith("method=")]
    cfg.lr = start_of(methods[-1] if methods else METHOD)
    return f"lr={AUTO}: found when the run begins; shown with {cfg.lr:g}, which its search tries"


def found_in(directory: Path) -> float | None:
    """Return the rate that a run found; ``None`` if it found none, or its file is no such file."""
    try:
        found = json.loads((directory / FILE).read_text(encoding="utf-8"))["rate"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return float(found) if isinstance(found, int | float) and 0 < found < math.inf else None


def with_found_rate(cfg: Any, directory: Path) -> Any:
    """Return a config with the rate that its run has found in a directory, if it asks for one.

    Args:
        cfg: The config of a job.
        directory: The directory of the run.
    """
    if not asks_for_a_search(cfg) or (found := found_in(directory)) is None:
        return cfg
    changed = deepcopy(cfg)
    changed.lr = found
    return changed


def problems_of_a_search(plain: Mapping[str, Any]) -> Iterator[str]:
    """Yield why the rate of a run cannot be found.

    Args:
        plain: The config, resolved, as plain types, with a number in place of ``auto``.
    """
    optimizer, trainer = plain.get("optimizer") or {}, plain.get("trainer") or {}
    if optimizer.get("lr") != plain["lr"]:
        yield (
            f"lr=auto: expected optimizer.lr to follow lr, got {optimizer.get('lr')}: leave "
            "optimizer.lr out, or give lr as a number"
        )
    if plain.get("resume") is not None:
        yield (
            f"lr=auto: expected a run from its start, got resume={plain['resume']}, which has the "
            "rate of its checkpoint: leave lr out, or give it as a number"
        )
    several = {name: trainer.get(name, 1) for name in ("devices", "num_nodes")}
    if wrong := [f"trainer.{name}={value}" for name, value in several.items() if not _one(value)]:
        yield (
            f"lr=auto: expected one device, got {', '.join(wrong)}: find the rate in a short run "
            "on one, and give it as a number"
        )
    for name, node in (plain.get("callbacks") or {}).items():
        if isinstance(node, Mapping) and node.get("unfreeze"):
            yield (
                f"lr=auto: expected a run without stages, got callbacks.{name}.unfreeze, whose "
                "stages have rates of their own: give lr as a number"
            )


def _one(value: Any) -> bool:
    return value in (1, "1") or (isinstance(value, list) and len(value) == 1)
