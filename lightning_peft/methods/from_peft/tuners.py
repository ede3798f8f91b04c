"""The tuners of the installed ``peft``, and the reasons why some cannot be injected."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from lightning_peft.errors import near, some
from lightning_peft.methods.in_weight.part import Part, layer_at

if TYPE_CHECKING:
    from peft import PeftConfig

__all__ = [
    "OWN_START",
    "WITH_ITS_WRAPPER",
    "attention_problems",
    "config_class",
    "layer_refusal",
    "list_tuners",
    "refusal",
]


def list_tuners() -> dict[str, str | None]:
    """List the tuners of the installed ``peft``, found from ``peft`` itself.

    Returns:
        Why :class:`HF` cannot inject each tuner, by name (``None`` if it can).
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return {name: refusal(name) for name in sorted(_by_name(PEFT_TYPE_TO_CONFIG_MAPPING))}


def refusal(tuner: str) -> str | None:
    """Return why a tuner cannot be injected into a backbone, or ``None`` if it can."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    config = _named(PEFT_TYPE_TO_CONFIG_MAPPING, tuner)
    if config is None:
        known = _by_name(PEFT_TYPE_TO_CONFIG_MAPPING)
        return f"unknown peft tuner '{tuner.lower()}'. {near(tuner, known, most=60)}"
    if tuner in _NEEDS:
        return f"{tuner} {_NEEDS[tuner]}"
    fields = {field.name for field in dataclasses.fields(config)}
    if _named(PEFT_TYPE_TO_TUNER_MAPPING, tuner) is None or "target_modules" not in fields:
        return (
            f"{tuner} learns prompts for a language model through peft's own wrapper: "
            f"expected a tuner that adapts modules; {WITH_ITS_WRAPPER}"
        )
    return None


WITH_ITS_WRAPPER = "wrap the model with peft.get_peft_model, and take it with the method 'existing'"
"""What to do with what ``peft``'s own forward is needed for."""

_NEEDS = {
    "ADAPTION_PROMPT": (
        "adapts the attention of Llama-like language models through peft's wrapper: "
        f"{WITH_ITS_WRAPPER}"
    ),
    "POLY": "needs a task id with every sample, which a plain forward does not have",
    "SHADOW": (
        f"adds a second network beside a language model through peft's wrapper: {WITH_ITS_WRAPPER}"
    ),
    "TRAINABLE_TOKENS": (
        "trains single rows of a token embedding: use LoRA with trainable_token_indices, "
        f"also_train for a whole embedding, or for the rows alone {WITH_ITS_WRAPPER}"
    ),
    "XLORA": (
        "mixes LoRA adapters of a transformers language model through peft's wrapper: "
        f"{WITH_ITS_WRAPPER}"
    ),
}

OWN_START = frozenset({"C3A", "FOURIERFT", "UNILORA", "VBLORA"})
"""Tuners whose own initialisation changes the output."""


def layer_refusal(tuner: str, model: nn.Module, names: tuple[str, ...]) -> Iterable[str]:
    """Yield the modules that ``peft`` accepts but computes wrongly, or cannot compute.

    Args:
        tuner: The tuner.
        model: The backbone, not yet adapted.
        names: The modules to adapt.
    """
    for check, said in _LIMITS.get(tuner, ()):
        wrong = [name for name in names if check(model, name)]
        if wrong:
            more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
            yield f"{said}, got {', '.join(wrong[:4])}{more}. Exclude these modules"


def attention_problems(model: nn.Module, names: tuple[str, ...]) -> Iterable[str]:
    """Yield the attention modules that ``peft``'s own rules of LoRA mean as a whole.

    Args:
        model: The backbone, not yet adapted.
        names: The modules and parts to adapt.
    """
    layers = {name: layer_at(model, name) for name in names}
    whole = [
        name.rpartition(".")[0]
        for name, layer in layers.items()
        if isinstance(layer, Part) and isinstance(layer.holder, nn.MultiheadAttention)
    ]
    if whole:
        yield (
            "peft's LoRA adds the update of an nn.MultiheadAttention's out_proj twice: expected "
            f"other targets, got {some(list(dict.fromkeys(whole)))}. Use lp.LoRA(targets="
            "'attention'), which adds it once"
        )


def _is_convolution(model: nn.Module, name: str) -> bool:
    return isinstance(layer_at(model, name), nn.Conv1d | nn.Conv2d | nn.Conv3d)


def _has_oblong_kernel(model: nn.Module, name: str) -> bool:
    module = layer_at(model, name)
    return isinstance(module, nn.Conv2d) and len(set(module.kernel_size)) > 1


def _is_wide_convolution(model: nn.Module, name: str) -> bool:
    module = layer_at(model, name)
    return isinstance(module, nn.Conv2d) and (
        module.groups > 1 or any(size > 1 for size in module.kernel_size)
    )


# Layers that peft 0.21 accepts nevertheless. Its OFT unfolds overlapping patches and folds them
# back without dividing by the count of each pixel: even without a rotation, the output differs.
_LIMITS: dict[str, tuple[tuple[Callable[[nn.Module, str], bool], str], ...]] = {
    "HRA": (
        (
            _has_oblong_kernel,
            "peft's HRA reads the first side of a kernel for both: expected convolutions with a "
            "square kernel",
        ),
    ),
    "OFT": (
        (
            _is_wide_convolution,
            "peft's OFT is right for linear layers and ungrouped 1x1 convolutions only: expected "
            "these",
        ),
    ),
    "TINYLORA": ((_is_convolution, "peft's TinyLoRA adapts linear layers: expected these"),),
}


def config_class(tuner: str) -> type[PeftConfig]:
    """Return the config class of a tuner that ``peft`` has."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    found: type[PeftConfig] | None = _named(PEFT_TYPE_TO_CONFIG_MAPPING, tuner)
    if found is None:
        raise KeyError(tuner)
    return found


def _named(mapping: Mapping[Any, Any], tuner: str) -> Any:
    """Return what one of ``peft``'s mappings has for a plain name, or ``None``."""
    if tuner in mapping:  # the members of peft's enum are strings too
        return mapping[tuner]
    return _by_name(mapping).get(tuner)


def _by_name(mapping: Mapping[Any, Any]) -> dict[str, Any]:
    """Return one of ``peft``'s mappings by plain names; its keys are an enum, or added strings."""
    return {getattr(key, "value", str(key)): value for key, value in mapping.items()}
