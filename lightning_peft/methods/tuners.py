"""The tuners of the installed ``peft``, and why some cannot be injected."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning_peft.errors import near

if TYPE_CHECKING:
    from peft import PeftConfig

__all__ = ["config_class", "list_tuners", "refusal"]


def list_tuners() -> dict[str, str | None]:
    """List the tuners of the installed ``peft``, found from ``peft`` itself.

    Returns:
        Each tuner's name, and why :class:`HF` cannot inject it (``None`` where it can).
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return {name: refusal(name) for name in sorted(_by_name(PEFT_TYPE_TO_CONFIG_MAPPING))}


def refusal(tuner: str) -> str | None:
    """Say why a tuner cannot be injected into a backbone, or ``None`` where it can."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    configs = _by_name(PEFT_TYPE_TO_CONFIG_MAPPING)
    tuners = _by_name(PEFT_TYPE_TO_TUNER_MAPPING)
    if tuner not in configs:
        return f"unknown peft tuner '{tuner.lower()}'. {near(tuner, configs, most=60)}"
    if tuner in _NEEDS:
        return f"{tuner} {_NEEDS[tuner]}"
    fields = {field.name for field in dataclasses.fields(configs[tuner])}
    if tuner not in tuners or "target_modules" not in fields:
        return (
            f"{tuner} learns prompts for a language model through peft's own wrapper: "
            "expected a tuner that adapts modules; use peft.get_peft_model for it"
        )
    if getattr(tuners[tuner], "uses_shared_state", False):
        return (
            f"{tuner} keeps state that its layers share outside of the backbone: expected a tuner "
            "whose layers hold their own; use peft.get_peft_model for it"
        )
    return None


_NEEDS = {
    "ADAPTION_PROMPT": "adapts the attention of Llama-like language models through peft's wrapper",
    "POLY": "needs a task id with every sample, which a plain forward does not have",
    "SHADOW": "adds a second network beside a language model through peft's wrapper",
    "TRAINABLE_TOKENS": "trains single rows of a token embedding; pass also_train for an embedding",
    "XLORA": "mixes LoRA adapters of a transformers language model through peft's wrapper",
}


def config_class(tuner: str) -> type[PeftConfig]:
    """Give the config class of a tuner that ``peft`` has."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    found: type[PeftConfig] = _by_name(PEFT_TYPE_TO_CONFIG_MAPPING)[tuner]
    return found


def _by_name(mapping: Mapping[Any, Any]) -> dict[str, Any]:
    """Give one of ``peft``'s mappings under plain names: its keys are an enum, or were added."""
    return {getattr(key, "value", str(key)): value for key, value in mapping.items()}
