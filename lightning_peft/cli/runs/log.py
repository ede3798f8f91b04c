"""Read the log of one run as curves."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path

from lightning_peft.files.plain_file import open_plain

__all__ = ["RATE", "Curve", "read_log", "set_aside"]


FILE = "metrics.csv"


RATE = "lr"
"""Under this name is the highest learning rate of all parameter groups."""


Curve = tuple[tuple[float, float], ...]
"""``(step, value)``, the steps rising."""


def read_log(directory: Path) -> dict[str, Curve]:
    """Return what a run logged.

    Args:
        directory: The run's directory.

    Returns:
        A curve for each name that was logged as numbers, and under ``"lr"`` the learning rate;
        nothing if the run kept no log.
    """
    path = directory / "csv" / FILE
    if not path.is_file():
        path = next(iter(sorted(directory.rglob(FILE))), path)
    found: dict[str, dict[float, float]] = {}
    for part in (*_earlier(path), path):  # what was done again after a checkpoint counts as it is
        try:
            with io.TextIOWrapper(
                open_plain(part, directory), encoding="utf-8", newline=""
            ) as file:
                for line in csv.DictReader(file):
                    _add(found, line)
        except (OSError, ValueError, csv.Error):  # such as half a file: what was read is kept
            pass
    return {name: tuple(sorted(values.items())) for name, values in found.items()}


def set_aside(directory: Path) -> None:
    """Rename the log of a run that is about to resume, so that the logger does not delete it.

    Args:
        directory: The run's directory.
    """
    path = directory / "csv" / FILE
    if path.is_file():
        number = len(_earlier(path)) + 1
        path.rename(path.with_name(f"metrics.{number}.csv"))


def _earlier(path: Path) -> list[Path]:
    """Return the logs that were set aside, the oldest first."""
    numbers = {each: each.stem.rpartition(".")[2] for each in path.parent.glob("metrics.*.csv")}
    return sorted(
        (each for each, number in numbers.items() if number.isdecimal()),
        key=lambda each: int(numbers[each]),
    )


def _add(found: dict[str, dict[float, float]], line: Mapping[str | None, object]) -> None:
    """Add the numbers of a line of the log, under the step of that line."""
    step = _number(line.get("step"))
    if step is None:
        return
    rates = []
    for name, cell in line.items():
        value = _number(cell)
        if name is None or name in ("step", "epoch") or value is None:
            continue
        if _is_rate(name):
            rates.append(value)
        else:
            found.setdefault(name, {})[step] = value
    if rates:
        found.setdefault(RATE, {})[step] = max(rates)


def _is_rate(name: str) -> bool:
    """Whether a name is a learning rate of LearningRateMonitor, not momentum or weight decay."""
    return name.startswith("lr-") and not name.endswith(("-momentum", "-weight_decay"))


def _number(cell: object) -> float | None:
    if not isinstance(cell, str):
        return None
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
