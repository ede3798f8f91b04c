"""The description of an adaptation in a file, checked as data before it is carried out.

A description comes from an adapter directory or a Lightning checkpoint, and neither is trusted.
Before a model is touched, its types are checked, and settings that would read other files, import
modules or never end are refused; while it is carried out, memory is limited.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from lightning_peft.errors import AdapterFileError, shown, some
from lightning_peft.files.patterns import strings_in

__all__ = ["FORMAT_VERSION", "check_description", "check_format", "method_configs"]

FORMAT_VERSION = 1

_MOST_METHODS = 32
_MOST_STRINGS = 20_000

# Options of peft's configs that make it import a module, read a file that the config names, or
# rebuild the model. None of them is needed for an adapter whose values are in its file.
_REACHING_OUT = {
    "megatron_config": "imports the module that megatron_core names",
    "corda_config": "reads a file that it names",
    "lora_ga_config": "reads a file that it names",
    "arrow_config": "works with other adapters",
    "layer_replication": "copies layers of the backbone",
}


def check_format(about: Mapping[str, Any], where: str) -> None:
    """Refuse a format version that this release cannot read.

    Args:
        about: The description.
        where: The file's name, for the error.

    Raises:
        AdapterFileError: If the number belongs to a later format, or is not a number.
    """
    number = about.get("format_version", FORMAT_VERSION)
    if type(number) is not int or not 1 <= number <= FORMAT_VERSION:
        raise AdapterFileError(
            f"{where}: expected format version {FORMAT_VERSION} or older, got {number!r}. "
            "Update lightning-peft to read it."
        )


def check_description(about: Mapping[str, Any], where: str) -> None:
    """Check a description as data, before any model is read.

    Args:
        about: The description, as from :meth:`Adaptation.describe`.
        where: The file's name, for the error.

    Raises:
        AdapterFileError: If an entry has the wrong type, or a method has a setting that no file may
            have; all problems at once.
    """
    problems = list(_type_problems(about))
    if not problems:
        methods = list(method_configs(about["method"]))
        if len(methods) > _MOST_METHODS:
            problems.append(f"expected at most {_MOST_METHODS} methods, got more")
        strings = sum(1 for _ in strings_in([about["method"], about.get("also_train")]))
        if strings > _MOST_STRINGS:
            problems.append(f"expected at most {_MOST_STRINGS:,} names in it, got {strings:,}")
        for config in methods:
            problems += _reaching_out(config)
    if problems:
        raise AdapterFileError(f"{where}: " + "; ".join(problems) + ".")


def _type_problems(about: Mapping[str, Any]) -> Iterable[str]:
    method, head = about.get("method"), about.get("head")
    if not isinstance(method, Mapping) or not isinstance(method.get("name"), str):
        yield f"expected a method with a name, got {some(sorted(map(str, about)), 12) or 'none'}"
    if head is not None and not _are_strings(head):
        yield f"expected 'head' to be a list of names, got {type(head).__name__}"
    if not _are_strings(about.get("also_train", ())):
        yield f"expected 'also_train' to be a list of names, got {shown(about['also_train'])}"
    if not _are_strings(about.get("fixed", ())):
        yield f"expected 'fixed' to be a list of names, got {shown(about['fixed'])}"
    for key in ("batchnorm", "backbone_dropout", "follows"):
        if not isinstance(about.get(key, ""), str):
            yield f"expected '{key}' to be a string, got {shown(about[key])}"
    if about.get("start", "factors") != "factors":
        yield f"expected 'start' to be 'factors', got {shown(about['start'])}"
    if not all(map(math.isfinite, _floats(about.get("method")))):
        yield "expected settings that are finite numbers, got one that is not"
    fingerprint = about.get("fingerprint")
    if fingerprint is not None and not (
        isinstance(fingerprint, Mapping)
        and isinstance(fingerprint.get("values", {}), Mapping)
        and isinstance(fingerprint.get("dtypes", {}), Mapping)
    ):
        yield f"expected 'fingerprint' to be a fingerprint, got {type(fingerprint).__name__}"


def _floats(value: Any) -> Iterable[float]:
    """Yield every float in plain data."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, Mapping):
        yield from _floats(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _floats(item)


def _are_strings(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


def method_configs(config: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """Yield a method's config and those of its parts, without recursion."""
    waiting = [config]
    for _ in range(_MOST_METHODS + 1):
        if not waiting:
            return
        found = waiting.pop()
        yield found
        parts = found.get("methods")
        if isinstance(parts, list | tuple):
            waiting += [part for part in parts if isinstance(part, Mapping)]


def _reaching_out(config: Mapping[str, Any]) -> Iterable[str]:
    options = config.get("options")
    if not isinstance(options, Mapping):
        return
    for key, value in options.items():
        if value and key in _REACHING_OUT:
            yield f"'{key}' {_REACHING_OUT[key]}, which no file may ask for: remove it"
