"""The settings of a config of ``peft`` as plain data, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning_peft.errors import MethodError
from lightning_peft.methods.base import plain

if TYPE_CHECKING:
    from peft import PeftConfig

__all__ = ["MANAGED", "options_of", "thawed"]

# entries that peft adds to a config, or that have no meaning for a backbone in memory
MANAGED = frozenset(
    {
        "peft_type",
        "peft_version",
        "auto_mapping",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
    }
)


def options_of(config: PeftConfig) -> dict[str, Any]:
    """Return the settings of a config that are not its class's defaults, as plain JSON types.

    Args:
        config: The config.

    Raises:
        MethodError: If one is not plain data.
    """
    defaults = {
        field.name: field.default_factory()
        if field.default_factory is not dataclasses.MISSING
        else field.default
        for field in dataclasses.fields(config)
    }
    return {
        key: plain(value)
        for key, value in config.to_dict().items()
        if key not in MANAGED and _plain_or_none(defaults.get(key)) != plain(value)
    }


def thawed(value: Any) -> Any:
    """Return a setting with the lists and dicts that ``peft``'s configs expect."""
    if isinstance(value, Mapping):
        return {key: thawed(item) for key, item in value.items()}
    return [thawed(item) for item in value] if isinstance(value, tuple) else value


def _plain_or_none(value: Any) -> Any:
    """Return a default as plain JSON types, or ``None`` if there is none."""
    try:
        return plain(value)
    except MethodError:
        return None
