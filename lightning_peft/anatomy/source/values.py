"""Values as far as they are known without running the model.

A value is a `View` of a module, a `Weight`, a `Method`, `Settings`, a function, a plain constant, a
list or tuple of values, or `UNKNOWN`. Python itself evaluates expressions of these, so that the
language need not be reimplemented.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from lightning_peft.anatomy.tree import is_container, unwrap

__all__ = ["UNKNOWN", "Method", "View", "Weight", "evaluate", "method_of", "tree_of"]

UNKNOWN: Any = object()
_PLAIN = (type(None), bool, int, float, str)

# Nodes that may be evaluated: they run no code of the model, and end soon.
_BUILTINS: dict[str, Any] = {f.__name__: f for f in (enumerate, getattr, len, list, reversed, zip)}
_HARMLESS = (
    *(ast.Name, ast.Attribute, ast.Subscript, ast.Slice, ast.Constant, ast.Tuple, ast.List),
    *(ast.Compare, ast.cmpop, ast.BoolOp, ast.boolop, ast.UnaryOp, ast.unaryop, ast.IfExp),
    *(ast.ListComp, ast.GeneratorExp, ast.comprehension, ast.keyword, ast.expr_context),
)


class _UnknownError(Exception):
    """A value is not known. An AttributeError would make `hasattr` return False."""


class View:
    """A module as an expression sees it: its parameters, submodules and plain attributes.

    Its own attributes have names that models do not use.

    Args:
        module: The module.
        views: The views of other modules that were reached from it.
    """

    def __init__(self, module: nn.Module, views: dict[int, View]) -> None:
        self.viewed_module, self.other_views = module, views

    def view_of(self, value: Any) -> Any:
        """Return the only view of a module; any other value as it is."""
        if not isinstance(value, nn.Module):
            return value
        module = unwrap(value)
        return self.other_views.setdefault(id(module), View(module, self.other_views))

    def __getattr__(self, name: str) -> Any:
        module = self.viewed_module
        if name in module._parameters:
            return None if module._parameters[name] is None else Weight(self, name)
        if name in module._modules:
            return self.view_of(module._modules[name])
        method = method_of(self, name)
        held = module._buffers if name in module._buffers else module.__dict__
        if method is not None and method.is_callable and name not in held:
            return method
        found = held.get(name, UNKNOWN if method is None else method.found)
        if _is_config(found):
            return Settings(found)
        if name == "training" or not isinstance(found, _PLAIN):
            raise _UnknownError
        return found

    def __bool__(self) -> bool:
        return bool(self.viewed_module)

    def __len__(self) -> int:
        return len(self._children())

    def __iter__(self) -> Iterator[Any]:
        return map(self.view_of, self._children())

    def __getitem__(self, index: Any) -> Any:
        return self.view_of(self._children()[index])

    def _children(self) -> Any:
        if not is_container(self.viewed_module):
            raise _UnknownError
        return self.viewed_module


@dataclass(frozen=True, eq=False)
class Settings:
    """A config of transformers, of which only is known what it has: its values may change."""

    settings_of: Any

    def __getattr__(self, name: str) -> Any:
        raise _UnknownError


def _is_config(value: Any) -> bool:
    return any(kind.__name__.lower() == "pretrainedconfig" for kind in type(value).__mro__)


def _has(value: Any, name: str) -> bool:
    return hasattr(value.settings_of if isinstance(value, Settings) else value, name)


_BUILTINS["hasattr"] = _has


@dataclass(frozen=True, eq=False)
class Weight:
    """A parameter, of which only the owner is known."""

    weight_owner: View
    weight_name: str


@dataclass(frozen=True, eq=False)
class Method:
    """An attribute of a module's class: a function, static or not, a property, a constant.

    Attributes:
        owner: The module.
        name: The name.
        found: The attribute's value.
        place: The class among the bases that defines it.
    """

    owner: View
    name: str
    found: Any
    place: type

    @property
    def is_callable(self) -> bool:
        """Whether it is a function."""
        return isinstance(self.found, (FunctionType, staticmethod, classmethod))

    def function(self) -> FunctionType | None:
        """Return the function, or that of the property, without its decorators."""
        found: Any = self.found.fget if isinstance(self.found, property) else self.found
        found = inspect.unwrap(getattr(found, "__func__", found))
        return found if isinstance(found, FunctionType) else None


_KNOWN = (*_PLAIN, FunctionType, View, Weight, Method, Settings, list, tuple)


def method_of(view: View, name: str, after: type | None = None) -> Method | None:
    """Find an attribute of a module's class, without looking into `nn.Module` itself.

    Args:
        view: The module.
        name: The name.
        after: Look only in the classes that follow this one, as `super()` does.

    Returns:
        The attribute, or None.
    """
    order = type(view.viewed_module).__mro__
    for place in order[order.index(after) + 1 :] if after in order else order:
        if place is nn.Module:
            break
        if name in vars(place):
            return Method(view, name, vars(place)[name], place)
    return None


@lru_cache(maxsize=4096)
def tree_of(code: CodeType) -> ast.FunctionDef | None:
    """Parse a function; None if its source is not available (typed into a prompt, frozen)."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    first = tree.body[0] if tree.body else None
    return first if isinstance(first, ast.FunctionDef) else None


def evaluate(node: ast.AST | None, lookup: Callable[[str], Any]) -> Any:
    """Evaluate an expression.

    Args:
        node: The expression.
        lookup: Returns the value of a name.

    Returns:
        The value; `UNKNOWN` if something in it is unknown or may not be evaluated.
    """
    compiled = _compiled(node)
    if compiled is None:
        return UNKNOWN
    code, names = compiled
    values: dict[str, Any] = {}
    for name in names:
        values[name] = lookup(name)
        if values[name] is UNKNOWN and name in _BUILTINS:
            values[name] = _BUILTINS[name]
        elif values[name] is UNKNOWN or not isinstance(values[name], _KNOWN):
            return UNKNOWN
    try:
        value = eval(code, {"__builtins__": {}, **values})
        return list(value) if isinstance(value, Iterator) else value
    except Exception:  # any error: a view is not a real module
        return UNKNOWN


@lru_cache(maxsize=16384)
def _compiled(node: ast.AST | None) -> tuple[CodeType, frozenset[str]] | None:
    """Compile an expression and list the names that it reads; None if it may not be evaluated."""
    if not isinstance(node, ast.expr) or isinstance(getattr(node, "ctx", 0), (ast.Store, ast.Del)):
        return None
    read: set[str] = set()
    written: set[str] = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Call):
            if not isinstance(part.func, ast.Name) or part.func.id not in _BUILTINS:
                return None
        elif not isinstance(part, _HARMLESS) or getattr(part, "attr", "").startswith("__"):
            return None
        if isinstance(part, ast.Name):
            (read if isinstance(part.ctx, ast.Load) else written).add(part.id)
    return compile(ast.Expression(node), "<forward>", "eval"), frozenset(read - written)
