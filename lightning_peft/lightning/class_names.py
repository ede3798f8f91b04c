"""What an object of Lightning is, by the name of its class."""

from __future__ import annotations

from typing import Any

__all__ = ["SHARDING", "is_a"]

SHARDING = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")
"""Strategies that keep a part of the model on each process."""


def is_a(instance: Any, *names: str) -> bool:
    """Say whether an object is of a class, by the class's name.

    Each of Lightning's two namespaces has a class of its own under the same name, and importing a
    strategy's module only to compare with it is not free.
    """
    return any(cls.__name__ in names for cls in type(instance).__mro__)
