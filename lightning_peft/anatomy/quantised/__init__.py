"""Layers whose weight is held as codes: what they hold, and how to read and write it."""

from __future__ import annotations

from lightning_peft.anatomy.quantised.layers import (
    Counted,
    counted,
    is_code,
    numel_of,
    quantised_layers,
    scheme_of,
    size_of,
    sizes_of,
    state_beside,
    tensors_of,
)
from lightning_peft.anatomy.quantised.schemes import EightBit, Scheme

__all__ = [
    "Counted",
    "EightBit",
    "Scheme",
    "counted",
    "is_code",
    "numel_of",
    "quantised_layers",
    "scheme_of",
    "size_of",
    "sizes_of",
    "state_beside",
    "tensors_of",
]
