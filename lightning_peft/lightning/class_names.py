"""Checking the class of a Lightning object by name."""

from __future__ import annotations

from typing import Any

__all__ = ["SHARDING", "is_a"]

SHARDING = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")
"""Strategies that keep only a part of the model on each process."""


def is_a(instance: Any, *names: str) -> bool:
    """Whether an object is an instance of a class with one of the names.

    Lightning's two namespaces have different classes of the same name, and importing a strategy's
    module only for a comparison takes time.
    """
    return any(cls.__name__ in names for cls in type(instance).__mro__)
