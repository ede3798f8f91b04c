"""Which attributes the code of a forward names at all, which is cheaper than following it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any

from torch import nn

__all__ = ["mentions"]

_ANY = "getattr"  # `getattr(layer, self.key)` may read any attribute


@lru_cache(maxsize=4096)
def mentions(kind: type[nn.Module], others: frozenset[type[nn.Module]]) -> frozenset[str] | None:
    """Return the attributes that the forward of a class names, or the functions that it calls.

    A name is followed wherever one of the classes has a method of that name, and wherever the
    module that defines the function has a function of that name. A weight whose name is not among
    the returned ones cannot be read by this forward.

    Args:
        kind: The class of the module.
        others: The classes of all modules that the forward may reach.

    Returns:
        The names, or ``None`` if it may read attributes whose name is only known to a run.
    """
    seen: set[CodeType] = set()
    named: set[str] = set()
    waiting = list(_functions(kind, "forward"))
    while waiting:
        function = waiting.pop()
        if function.__code__ in seen:
            continue
        seen.add(function.__code__)
        names = set(_names(function.__code__))
        named |= names
        for name in names:
            waiting.extend(each for one in (kind, *others) for each in _functions(one, name))
            found = function.__globals__.get(name)
            if isinstance(found, FunctionType):
                waiting.append(found)
    return None if _ANY in named else frozenset(named)


def _functions(kind: type[nn.Module], name: str) -> Iterator[FunctionType]:
    """Return the functions of this name in a class and its bases, without `nn.Module` itself."""
    for place in kind.__mro__:
        if place is nn.Module:
            return
        found: Any = vars(place).get(name)
        found = found.fget if isinstance(found, property) else getattr(found, "__func__", found)
        function = inspect.unwrap(found) if callable(found) else None
        if isinstance(function, FunctionType):
            yield function


def _names(part: Any) -> Iterator[str]:
    """Return the names and the strings in a code object, with those of the code inside it."""
    if isinstance(part, str):
        yield part
    elif isinstance(part, CodeType):
        yield from part.co_names
        for constant in part.co_consts:
            yield from _names(constant)
    elif isinstance(part, (tuple, frozenset)):
        for each in part:
            yield from _names(each)
