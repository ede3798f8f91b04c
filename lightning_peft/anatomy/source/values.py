"""What is known of a value without running the code that makes it.

A value is a module, a `Weight`, a `Method`, `OneOf` several of these, a plain constant, a tuple of
values, or `UNKNOWN`.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import FunctionType
from typing import Any

from torch import nn

from lightning_peft.anatomy.tree import is_container, unwrap

__all__ = [
    "PRIMITIVE",
    "UNKNOWN",
    "Method",
    "OneOf",
    "Scope",
    "Unknown",
    "Weight",
    "either",
    "is_list",
    "items_of",
    "truth_of",
]

PRIMITIVE = (type(None), bool, int, float, str)
Scope = dict[str, Any]


class Unknown:
    """The class of `UNKNOWN`."""


UNKNOWN = Unknown()


class Weight:
    """A parameter of a module."""

    def __init__(self, owner: nn.Module, name: str) -> None:
        self.owner, self.name = owner, name


class Method:
    """A method and the module that it is bound to; `static` if it is not given the module."""

    def __init__(self, owner: nn.Module, function: FunctionType, static: bool = False) -> None:
        self.owner, self.function, self.static = owner, function, static


class OneOf:
    """One of several values; which one is not known."""

    def __init__(self, options: Iterable[object]) -> None:
        self.options = list(options)


def either(values: Iterable[Any]) -> Any:
    """Give what is known of a value that is one of several."""
    options: list[Any] = []
    for value in values:
        parts = value.options if isinstance(value, OneOf) else [value]
        options += [part for part in parts if all(part is not known for known in options)]
    if len(options) == 1:
        return options[0]
    kept = [option for option in options if isinstance(option, (nn.Module, Weight, Method))]
    return OneOf(kept) if kept else UNKNOWN


def is_list(value: Any) -> bool:
    """Say whether a value is a ModuleList, ModuleDict or Sequential."""
    return isinstance(value, nn.Module) and is_container(value)


def items_of(value: Any) -> Any:
    """Give what an iteration over a value yields."""
    if isinstance(value, nn.ModuleDict):
        return UNKNOWN  # its keys
    if is_list(value):
        return OneOf(map(unwrap, value.children()))
    return value if isinstance(value, OneOf) else UNKNOWN


def truth_of(value: Any) -> bool | None:
    """Say whether a value is true; None where that is not known."""
    if isinstance(value, nn.Module):
        return bool(len(value)) if isinstance(value, (nn.ModuleList, nn.ModuleDict)) else True
    return bool(value) if isinstance(value, PRIMITIVE) else None
