"""Checks of the settings that several methods have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["size_problems"]


def size_problems(**settings: Any) -> Iterable[str]:
    """Yield the problems of widths (whole numbers from 1), dropout and scale."""
    for name, value in settings.items():
        if name in ("dropout", "drop_path"):
            if not isinstance(value, int | float) or not 0 <= value < 1:
                yield f"expected {name} to be a probability in [0, 1), got {value!r}"
        elif name == "scale":
            if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
                yield f"expected scale to be a positive number, got {value!r}"
        elif not isinstance(value, int) or isinstance(value, bool) or value < 1:
            yield f"expected {name} to be a whole number from 1, got {value!r}"
