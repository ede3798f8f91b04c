"""Find the functions of a class and their syntax trees."""

from __future__ import annotations

import ast
import inspect
import textwrap
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any

from torch import nn

__all__ = ["class_of", "code_of", "method_of", "tree_of"]


def method_of(kind: type, name: str, after: type | None = None) -> FunctionType | property | None:
    """Find a class's own method or property, not looking into `nn.Module` itself.

    Args:
        kind: The class of a module.
        name: The method's name.
        after: Look only in the classes that follow this one, as `super()` does.

    Returns:
        The function (of static and class methods the one inside) or property, or None.
    """
    order = kind.__mro__
    for base in order[order.index(after) + 1 :] if after in order else order:
        if base is nn.Module:
            return None
        if name in base.__dict__:
            found = base.__dict__[name]
            found = found.__func__ if isinstance(found, (staticmethod, classmethod)) else found
            return found if isinstance(found, (FunctionType, property)) else None
    return None


def code_of(function: Any) -> tuple[CodeType, dict[str, Any]] | None:
    """Give the code of a function or property, under its decorators, and its module's names."""
    if isinstance(function, property):
        function = function.fget
    if not callable(function):
        return None
    function = inspect.unwrap(function)
    if not isinstance(function, FunctionType):
        return None
    return function.__code__, function.__globals__


def class_of(kind: type, code: CodeType) -> type | None:
    """Find the class among a class and its bases that a running method was defined in."""
    for base in kind.__mro__:
        for value in vars(base).values():
            found = code_of(value) if isinstance(value, (FunctionType, property)) else None
            if found is not None and found[0] is code:
                return base
    return None


@lru_cache(maxsize=4096)
def tree_of(code: CodeType) -> ast.FunctionDef | None:
    """Parse a function; None where its source is not there (typed into a prompt, frozen)."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    first = tree.body[0] if tree.body else None
    return first if isinstance(first, ast.FunctionDef) else None
