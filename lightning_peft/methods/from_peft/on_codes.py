"""Which tuners of ``peft`` compute with a base that holds its weight as codes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from lightning_peft.anatomy.quantised import is_code, scheme_of, size_of
from lightning_peft.errors import some
from lightning_peft.methods.in_weight.part import layer_at

__all__ = ["ON_ANY_CODES", "code_problems"]

ON_ANY_CODES = frozenset({
    "ADALORA", "BEFT", "BOFT", "C3A", "FOURIERFT", "GRALORA", "IA3", "LILY", "LN_TUNING", "LORA",
    "MISS", "OFT", "PVERA", "RANDLORA", "ROAD", "SHIRA", "TRAINABLE_TOKENS", "VBLORA", "VERA",
    "WAVEFT",
})  # fmt: skip
"""Tuners that call the base and read neither the numbers nor the shape of its weight."""

_BY_SHAPE = frozenset({"DEFT", "LOHA", "LOKR"})
"""Those that read its shape, which packed codes do not have."""


def code_problems(
    tuner: str, options: Mapping[str, Any], model: nn.Module, names: Iterable[str]
) -> Iterable[str]:
    """Yield why a tuner cannot adapt some layers, which hold codes.

    Args:
        tuner: The tuner's name.
        options: Its settings, by ``peft``'s names.
        model: The backbone.
        names: Names of layers to adapt.
    """
    layers = {name: layer_at(model, name) for name in names}
    coded = {name: layer for name, layer in layers.items() if _holds_codes(layer)}
    if not coded:
        return
    refused = [n for n, layer in coded.items() if not _reads_no_numbers(tuner, layer)]
    if refused:
        told = some([f"{n} ({_kind(coded[n])})" for n in refused], 4)
        if any(getattr(coded[n], "W_q", None) is not None for n in refused):
            yield (
                f"expected layers of floating-point numbers, since peft has a layer around HQQ's "
                f"for LoRA only, not for {tuner}, got codes in {told}. Use 'lora', 'dora' or a "
                "method that is not peft's, or load the backbone in floating point"
            )
            return
        yield (
            f"expected layers of floating-point numbers, since peft's {tuner} computes with the "
            f"weight itself, got codes in {told}. Use 'lora' or another of "
            f"{', '.join(sorted(t.lower() for t in ON_ANY_CODES))}, or load the backbone in "
            "floating point"
        )
    if options.get("use_dora"):
        lost = [
            name
            for name, layer in coded.items()
            if type(getattr(layer, "weight", None)).__name__ == "Int8Params"
            and layer.weight.device.type == "cpu"
        ]
        if lost:
            yield (
                f"expected DoRA on a GPU where the base is int8 of bitsandbytes, since peft loses "
                f"its scales on a CPU, got {some(lost, 4)}. Use 'lora', or a base in 4 bits"
            )


def _holds_codes(layer: Any) -> bool:
    if scheme_of(layer) is not None:
        return True
    weight = getattr(layer, "weight", None)
    return isinstance(weight, Tensor) and is_code(weight)


def _reads_no_numbers(tuner: str, layer: Any) -> bool:
    if getattr(layer, "W_q", None) is not None:  # only LoRA of peft has a layer around HQQ's
        return tuner == "LORA"
    return tuner in ON_ANY_CODES or (
        tuner in _BY_SHAPE and tuple(layer.weight.shape) == size_of(layer)
    )


def _kind(layer: Any) -> str:
    scheme = scheme_of(layer)
    return type(layer).__name__ if scheme is None else scheme.name(layer)
