"""Lengths in a run with an explicit unit: a fraction of it, optimizer steps or epochs."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lightning_peft.errors import ScheduleError

__all__ = ["THREE_WAYS", "Length", "as_length"]

Unit = Literal["part", "steps", "epochs"]

THREE_WAYS = (
    "a part of the run (0.1 or '10%'), optimizer steps (500 or '500 steps') or epochs ('2 epochs')"
)

_UNITS: dict[str, Unit] = {
    "%": "part",
    "step": "steps",
    "steps": "steps",
    "epoch": "epochs",
    "epochs": "epochs",
}
_WORDS = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+|%)", re.IGNORECASE)


@dataclass(frozen=True)
class Length:
    """A length with its unit.

    Attributes:
        amount: A fraction of the run in [0, 1], or a number of steps or epochs from 0.
        unit: The unit.

    >>> as_length("10%", "warmup").steps(250), as_length("2 epochs", "warmup").steps(None, 25)
    (25, 50)
    """

    amount: float
    unit: Unit

    def steps(self, total_steps: int | None, epoch_steps: Sequence[int] | int | None = None) -> int:
        """Return the length in optimizer steps of one run, rounded to whole steps.

        Args:
            total_steps: The optimizer steps of the run; ``None`` if unknown.
            epoch_steps: The optimizer steps of an epoch, or of each of the first epochs where they
                differ (the last number is for all later ones); ``None`` if unknown.

        Raises:
            ScheduleError: If the number that this unit needs is not known.
        """
        if self.unit == "steps":
            return int(self.amount)
        if self.unit == "part":
            if total_steps is None:
                raise ScheduleError(
                    f"a part of the run ({self}) needs a run of known length: give it in steps or "
                    "in epochs, or give the run a length"
                )
            return round(self.amount * total_steps)
        if epoch_steps is None:
            raise ScheduleError(
                f"a length in epochs ({self}) needs epochs of known length: give it in steps, or "
                "as a part of the run"
            )
        if isinstance(epoch_steps, int):
            return round(self.amount * epoch_steps)
        whole = math.floor(self.amount)
        each = [epoch_steps[min(epoch, len(epoch_steps) - 1)] for epoch in range(whole + 1)]
        return sum(each[:-1]) + round((self.amount - whole) * each[-1])

    def __str__(self) -> str:
        if self.unit == "part":
            return f"{100 * self.amount:.6g}%"
        return f"{self.amount:g} {self.unit if self.amount != 1 else self.unit[:-1]}"


def as_length(value: object, name: str) -> Length:
    """Parse a length.

    Args:
        value: A float in [0, 1) is a fraction of the run, an int is optimizer steps, and a string
            has a unit: ``"10%"``, ``"500 steps"``, ``"2 epochs"``.
        name: The name of the setting, for the error.

    Returns:
        The length.

    Raises:
        ScheduleError: If it is none of these, or could be two of them, as ``1.0`` (all of the run,
            or one step?) and ``"3"`` could.
    """
    if isinstance(value, bool):
        pass
    elif isinstance(value, int):
        if value >= 0:
            return Length(value, "steps")
        raise ScheduleError(f"expected {name} to be from 0, got {value}")
    elif isinstance(value, float):
        if 0 <= value < 1:
            return Length(value, "part")
        raise ScheduleError(
            f"expected {name} as {THREE_WAYS}, got {value}: as a number with a point it would be a "
            "part of the run, in [0, 1)"
        )
    elif isinstance(value, str):
        match = _WORDS.fullmatch(value.strip())
        unit = _UNITS.get(match[2].lower()) if match else None
        if match and unit:
            return _in_words(float(match[1]), unit, value, name)
    raise ScheduleError(f"expected {name} as {THREE_WAYS}, got {value!r}")


def _in_words(amount: float, unit: Unit, value: str, name: str) -> Length:
    if unit == "part" and amount > 100:
        raise ScheduleError(f"expected {name} to be at most '100%' of the run, got {value!r}")
    if unit == "steps" and not amount.is_integer():
        raise ScheduleError(f"expected {name} in whole steps, got {value!r}")
    return Length(amount / 100 if unit == "part" else amount, unit)
