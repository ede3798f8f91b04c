"""What is measured: each model with each kind of weights, the mixtures with their experts too."""

from __future__ import annotations

from tests.small_models.bases import BASES
from tests.small_models.checks import Line
from tests.small_models.models import MODELS

__all__ = ["EXPERTS", "lines"]

EXPERTS = {"targets": ["auto", "experts"]}
_FUSED = ("Jamba", "GraniteMoeHybrid")


def lines() -> list[Line]:
    """Return every line: all models in numbers, then in codes."""
    found: list[Line] = []
    for base in BASES:
        for small in MODELS.values():
            found.append(Line(small, base))
            if small.kind == "mixture" or small.name in _FUSED:
                found.append(Line(small, base, EXPERTS))
    return found
