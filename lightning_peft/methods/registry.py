"""The registry of methods by name, like timm's for models."""

from __future__ import annotations

import fnmatch
import inspect
import warnings
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, TypeVar

from lightning_peft.errors import MethodError, near
from lightning_peft.methods.base import Method

__all__ = ["create_method", "list_methods", "method_from_config", "register_method"]

PLUGINS = "lightning_peft.methods"
"""The group of entry points in which other packages list their methods."""

_METHODS: dict[str, type[Method]] = {}
_seen: set[str] = set()
T = TypeVar("T", bound=type[Method])


def register_method(cls: T) -> T:
    """Register a method by its ``name``; use as a class decorator.

    Args:
        cls: A frozen dataclass derived from :class:`Method`.

    Returns:
        The class, unchanged.

    Raises:
        MethodError: If another class already has that name.

    >>> import lightning_peft as lp
    >>> try:
    ...     @lp.register_method
    ...     class Mine(lp.LoRA):
    ...         name = "lora"
    ... except lp.MethodError:
    ...     print("refused: the name is taken")
    ...
    refused: the name is taken
    """
    standing = _METHODS.get(cls.name)
    if standing is not None and standing is not cls:
        raise MethodError(
            f"the method name '{cls.name}' is taken by {standing.__module__}.{standing.__name__}: "
            f"give {cls.__module__}.{cls.__name__} another name."
        )
    _METHODS[cls.name] = cls
    return cls


def load_plugins() -> None:
    """Register the methods that installed packages list as entry points.

    A plug-in that cannot be loaded causes a warning; the others are loaded nevertheless.
    """
    for entry in entry_points(group=PLUGINS):
        if entry.value in _seen:
            continue
        _seen.add(entry.value)
        try:
            cls = entry.load()
            if not (isinstance(cls, type) and issubclass(cls, Method)):
                raise MethodError(f"expected a class derived from Method, got {cls!r}")
            register_method(cls)
        except Exception as error:  # no error of another package may stop this one
            package = entry.dist.name if entry.dist is not None else "a package"
            warnings.warn(
                f"the method '{entry.name}' of {package} ({entry.value}) cannot be loaded: {error}",
                stacklevel=3,
            )


def list_methods(pattern: str = "*") -> list[str]:
    """List the registered methods, including those of installed plug-ins.

    Args:
        pattern: A glob on the name, such as ``"l*"``.

    Returns:
        The names, sorted.

    >>> list_methods("bit*")
    ['bitfit']
    """
    load_plugins()
    listed = [name for name, cls in _METHODS.items() if cls.listed]
    return sorted(fnmatch.filter(listed, pattern))


def method_class(name: str) -> type[Method]:
    """Return the class that is registered under a name.

    Raises:
        MethodError: If there is none; similar names are listed.
    """
    if name not in _METHODS:
        load_plugins()
    if name not in _METHODS:
        raise MethodError(f"unknown method '{name}'. {near(name, _METHODS, most=20)}")
    return _METHODS[name]


def create_method(name: str, **settings: Any) -> Method:
    """Create a method by its name.

    Args:
        name: A name from :func:`list_methods`.
        **settings: The method's own settings, such as ``rank=8``.

    Returns:
        The method.

    Raises:
        MethodError: If the name or a setting is unknown, or a setting is out of range.

    >>> create_method("lora", rank=4).rank
    4
    """
    cls = method_class(name)
    _check_settings(cls, settings)
    return cls(**settings)


def _check_settings(cls: type[Method], settings: Mapping[str, Any]) -> None:
    parameters = inspect.signature(cls).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    unknown = [] if takes_any else [key for key in settings if key not in parameters]
    if unknown:
        raise MethodError(
            "; ".join(
                f"{cls.name} has no setting '{key}'. {near(key, parameters)}" for key in unknown
            )
        )
    missing = [
        key
        for key, p in parameters.items()
        if p.default is p.empty and p.kind is not p.VAR_KEYWORD and key not in settings
    ]
    if missing:
        raise MethodError(f"{cls.name} needs {', '.join(missing)}: expected a value, got none.")


def method_from_config(config: Mapping[str, Any]) -> Method:
    """Rebuild a method from the result of :meth:`Method.to_config`.

    The config is data: a name for the registry, and settings of plain types. Nothing in it is
    imported or executed.

    Raises:
        MethodError: If the name or a setting is unknown.
    """
    name = config.get("name")
    if not isinstance(name, str):
        raise MethodError(f"expected a method config with a 'name', got {dict(config)!r}.")
    settings = {str(key): value for key, value in config.items() if key != "name"}
    cls = method_class(name)
    _check_settings(cls, settings)
    return cls._from_settings(settings)
