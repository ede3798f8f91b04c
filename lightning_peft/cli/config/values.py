"""Check whether a value from the command line fits the annotation of its parameter."""

from __future__ import annotations

import collections.abc
import inspect
import os
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from lightning_peft.errors import near

__all__ = ["annotations_of", "complaint", "fits"]

MOST_WORDS = 5
"""The longest list of words that a message writes out."""

_SEQUENCES = (
    list,
    tuple,
    set,
    frozenset,
    collections.abc.Sequence,
    collections.abc.Iterable,
    collections.abc.Collection,
)
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


def fits(value: Any, annotation: Any) -> bool:
    """Whether a plain value (from YAML) can be meant for an annotation.

    What cannot be judged is let through: an annotation that is a class of its own (which may take a
    string), an unresolved name, a type variable.

    >>> fits(8, int | None), fits("two", int), fits(2, float), fits("16-mixed", int | str)
    (True, False, True, True)
    """
    if type(annotation).__name__ == "TypeAliasType":  # Python 3.12's `type X = ...`
        annotation = annotation.__value__
    origin = get_origin(annotation)
    if origin is Annotated:
        return fits(value, get_args(annotation)[0])
    if origin is Union or origin is types.UnionType:
        return any(fits(value, option) for option in get_args(annotation))
    if origin is Literal:
        return value in get_args(annotation)
    base = origin or annotation
    if base in (None, type(None)):
        return value is None
    if base is bool:
        return isinstance(value, bool) or value in (0, 1)
    if base is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if base is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if base is str:
        return isinstance(value, str)
    if base in (os.PathLike, PurePath) or (isinstance(base, type) and issubclass(base, PurePath)):
        return isinstance(value, str | os.PathLike)
    if base in _SEQUENCES:
        return _fits_sequence(value, base, get_args(annotation))
    if base in _MAPPINGS:
        return isinstance(value, Mapping)
    return True


def _fits_sequence(value: Any, base: Any, arguments: tuple[Any, ...]) -> bool:
    if isinstance(value, str):
        return base not in (list, tuple, set, frozenset)
    if not isinstance(value, collections.abc.Iterable):
        return False
    if base is tuple and arguments and arguments[-1] is not Ellipsis:
        items = list(value)
        return len(items) == len(arguments) and all(map(fits, items, arguments))
    return all(fits(item, arguments[0]) for item in value) if arguments else True


def complaint(value: Any, annotation: Any) -> str | None:
    """Return what was expected and what was got if a value does not fit, with the nearest word.

    >>> complaint("two", int)
    "expected a whole number, got 'two'."
    """
    if fits(value, annotation):
        return None
    text = f"expected {_words(annotation)}, got {value!r}."
    words = [word for word in _literals(annotation) if isinstance(word, str)]
    return f"{text} {near(str(value), words)}" if words else text


def annotations_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotation of each parameter of a callable, without those that do not evaluate.

    One parameter whose annotation is imported for type checkers alone must not hide the others, so
    each is evaluated by itself.
    """
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        annotation = parameter.annotation
        if annotation is parameter.empty:
            continue
        if isinstance(annotation, str):
            try:
                annotation = eval(annotation, _namespace(function, name))
            except Exception:
                continue
        found[name] = annotation
    return found


def _namespace(function: Callable[..., Any], parameter: str) -> dict[str, Any]:
    """Return the globals in which the annotation of a parameter was written."""
    if inspect.isclass(function):
        for base in function.__mro__:  # a dataclass field may come from a base in another module
            if parameter in inspect.get_annotations(base):
                return vars(sys.modules[base.__module__])
        function = function.__init__
    return dict(getattr(inspect.unwrap(function), "__globals__", {}))


def _literals(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [word for option in get_args(annotation) for word in _literals(option)]


def _words(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Union or origin is types.UnionType:
        return " or ".join(dict.fromkeys(_words(option) for option in get_args(annotation)))
    if origin is Literal and len(get_args(annotation)) > MOST_WORDS:
        return f"one of {len(get_args(annotation))} words"
    if origin is Literal:
        return " or ".join(repr(word) for word in get_args(annotation))
    plain = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a string",
        type(None): "null",
        None: "null",
    }
    if annotation in plain:
        return plain[annotation]
    base = origin or annotation
    if base in _SEQUENCES:
        return "a list"
    if base in _MAPPINGS:
        return "a mapping"
    return getattr(base, "__name__", str(base))
