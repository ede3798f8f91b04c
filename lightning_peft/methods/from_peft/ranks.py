"""Ranks of the layers of a tuner: which have one of their own, and how a config says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_peft.methods.from_peft.idle import default_of, pattern_for
from lightning_peft.methods.from_peft.narrow import rank_patterns

__all__ = ["BY_LAYER", "NO_RANK", "limit_ranks"]

# where r is no bound of the rank of each layer: VeRA's shared projections may be taller than a
# layer, LoKr takes a whole factor, HiRA multiplies the weight entry by entry; r is a number of
# blocks of OFT, of reflections of the input of HRA, and of groups of the input of MiSS
NO_RANK = frozenset({"HIRA", "HRA", "LOKR", "MISS", "OFT", "PVERA", "VERA"})

_ALPHA = {"LOHA": "alpha", "LORA": "lora_alpha"}
"""The setting that is divided by the rank."""

BY_LAYER = frozenset({"DELORA", *_ALPHA})
"""Tuners with a rank for each layer (``rank_pattern``), which may be above the layer's sides."""


def limit_ranks(tuner: str, options: dict[str, Any], narrow: Mapping[str, int]) -> None:
    """Add the ranks of narrow layers to a config's own, with the factor of the others.

    Args:
        tuner: The name of the tuner.
        options: The settings of its config; changed.
        narrow: The ranks by the names of the layers.
    """
    alpha_key = _ALPHA.get(tuner)
    own = options.get("alpha_pattern") or {}
    root = bool(options.get("use_rslora"))
    for name, most in narrow.items():
        alpha = None
        if alpha_key is not None:
            alpha = options.get(alpha_key, default_of(tuner, alpha_key))
            alpha = own.get(pattern_for(own, name), alpha)
        for key, entry in rank_patterns({name: most}, options["r"], alpha, root).items():
            options[key] = {**entry, **(options.get(key) or {})}
