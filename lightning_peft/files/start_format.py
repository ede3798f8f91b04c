"""Adapters whose initialisation rewrote the weights, in a form that needs no rewritten weights.

``peft`` reads a file with ``init_lora_weights="pissa"`` by running the initialisation again, which
is right only if nothing in it is random and its data is there. With both pairs of factors in the
file, ``W0 + s B A = W + s (B A - B0 A0) = W + s [B, -B0] [A; A0]`` is a plain LoRA of twice the
rank on the original weights. ``peft`` writes the same for
``save_pretrained(..., path_initial_model_for_weight_conversion=...)``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_peft.errors import AdapterFileError, some
from lightning_peft.methods.from_peft.inject import ADAPTER_NAME
from lightning_peft.methods.from_peft.start import START, starts_of

__all__ = ["converted_config", "converted_state", "factor_names", "is_convertible", "split_state"]


def factor_names(model: nn.Module) -> set[str]:
    """Return the names of the buffers that hold ``A0`` and ``B0``."""
    return {f"{name}.{START}.{side}" for name in starts_of(model) for side in ("A", "B")}


def is_convertible(model: nn.Module) -> bool:
    """Whether every such layer is plain LoRA or DoRA, whose rank can be doubled."""
    layers: list[Any] = [model.get_submodule(name) for name in starts_of(model)]
    variants = {type(v).__name__ for layer in layers for v in layer.lora_variant.values()}
    return all(variant.startswith("Dora") for variant in variants)


def converted_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of ``adapter_config.json`` for twice the rank and the same scale.

    Args:
        config: The config of the adapter.
    """
    # the scale is alpha / r, or alpha / sqrt(r)
    factor = math.sqrt(2) if config.get("use_rslora") else 2
    return {
        **config,
        "init_lora_weights": True,
        "corda_config": None,
        "lora_ga_config": None,
        "r": 2 * config["r"],
        "lora_alpha": factor * config["lora_alpha"],
        "rank_pattern": {key: 2 * r for key, r in (config.get("rank_pattern") or {}).items()},
        "alpha_pattern": {
            key: factor * alpha for key, alpha in (config.get("alpha_pattern") or {}).items()
        },
    }


def converted_state(
    model: nn.Module, state: Mapping[str, Tensor], names: Mapping[str, str]
) -> dict[str, Tensor]:
    """Return the tensors of a file with ``[A; A0]`` and ``[B, -B0]``.

    Args:
        model: The adapted model.
        state: The tensors under the names that ``peft`` uses.
        names: The model's name for each of these.
    """
    keys = {name: key for key, name in names.items()}
    written = dict(state)
    for layer, start in starts_of(model).items():
        first, second = (keys[name] for name in _pair(layer))
        written[first] = torch.cat([state[first], start.A.to(state[first])], 0)
        written[second] = torch.cat([state[second], -start.B.to(state[second])], 1)
    return written


def split_state(model: nn.Module, state: Mapping[str, Tensor], factors: bool) -> dict[str, Tensor]:
    """Return the four factors of each layer from a file, under the model's names.

    A file without ``A0`` and ``B0`` is one for which the initialisation was run again: its own are
    taken.

    Args:
        model: The adapted model.
        state: The tensors, under the model's names; those of other layers stay as they are.
        factors: Whether the file says that it holds ``A0`` and ``B0``.

    Raises:
        AdapterFileError: If the file has no ``A0`` and ``B0``, and those of the model are from
            another file.
    """
    found = dict(state)
    loaded = []
    for layer, start in starts_of(model).items():
        rank = len(start.A)
        first, second = _pair(layer)
        if first not in state or second not in state:
            continue
        if factors:
            if len(state[first]) != 2 * rank or state[second].shape[1:] != (2 * rank,):
                continue  # of another shape, which is said with all others
            found[first], found[f"{layer}.{START}.A"] = state[first].split(rank, 0)
            found[second], negative = state[second].split(rank, 1)
            found[f"{layer}.{START}.B"] = -negative
        elif not start.computed:
            loaded.append(layer)
        else:
            found[f"{layer}.{START}.A"], found[f"{layer}.{START}.B"] = start.A, start.B
    if loaded:
        raise AdapterFileError(
            "expected a file with the factors that its initialisation took out of the weights, got "
            f"one without them for {some(loaded)}, and this model's are those of another "
            "file. Load it into a fresh backbone and save it again."
        )
    return found


def _pair(layer: str) -> tuple[str, str]:
    return tuple(f"{layer}.lora_{side}.{ADAPTER_NAME}.weight" for side in "AB")  # type: ignore[return-value]
