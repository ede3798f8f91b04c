"""Layers that are narrower than a rank: a rank of their own, or a refusal that says what to do."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from lightning_peft.anatomy import anatomy
from lightning_peft.anatomy.names import inside
from lightning_peft.anatomy.quantised import size_of
from lightning_peft.errors import some
from lightning_peft.methods.from_peft.inject import ADAPTER_NAME
from lightning_peft.methods.in_weight.part import layer_at

__all__ = ["cut_ranks", "kinds_of", "named", "narrow_layers", "rank_patterns", "rank_problems"]


def narrow_layers(model: nn.Module, names: Iterable[str], rank: int) -> dict[str, int]:
    """Return the largest useful rank of each layer where it is below a rank.

    That is the smaller side of its weight. ``peft`` gives a grouped convolution an ``A`` that sees
    every input channel, in each of its groups, and takes multiples of the groups only.

    Args:
        model: The backbone.
        names: The modules to adapt.
        rank: The requested rank.
    """
    found = {}
    for name in names:
        layer = layer_at(model, name)
        shape = size_of(layer)
        if shape is None or len(shape) < 2:
            continue
        groups = getattr(layer, "groups", 1)
        inner = math.prod(shape[1:]) * groups * groups
        most = min(shape[0], inner) // groups * groups
        if rank > most:
            found[name] = most
    return found


def named(names: Iterable[str], targets: Any) -> tuple[str, ...]:
    """Return the layers that targets name in full, and not by a preset, a glob or an ending.

    Args:
        names: The selected layers, or parts of modules.
        targets: The targets of a method.
    """
    entries = (targets,) if isinstance(targets, str) else tuple(targets or ())
    return tuple(name for name in names if name in entries)


def rank_problems(model: nn.Module, names: tuple[str, ...], rank: int) -> Iterable[str]:
    """Yield the modules whose smaller side is below a rank.

    Args:
        model: The backbone.
        names: The modules to adapt.
        rank: The requested rank.
    """
    narrow = narrow_layers(model, names, rank)
    if narrow:
        small = some([f"{name} (at most {most})" for name, most in narrow.items()])
        yield (
            f"expected a rank no larger than the layer, got {rank} for {small}. Lower the rank, or "
            f"{_ways_out(model, tuple(narrow))}"
        )


def kinds_of(kind: str, narrow: Mapping[str, int]) -> dict[str, str]:
    """Return the kind of change at each narrow layer, which says its rank.

    Args:
        kind: The kind at the others.
        narrow: The ranks of the narrow layers, by name.
    """
    return {name: f"{kind} of rank {most}" for name, most in narrow.items()}


def rank_patterns(
    narrow: Mapping[str, int], rank: int, alpha: float | None, root: bool = False
) -> dict[str, Any]:
    """Return ``peft``'s settings of layers whose rank is below that of the others.

    Args:
        narrow: Their ranks, by name.
        rank: The rank of the others.
        alpha: The ``alpha`` of the others; ``None`` where no tuner divides by the rank.
        root: Whether the update is divided by the root of the rank (rsLoRA).

    Returns:
        ``rank_pattern`` and ``alpha_pattern``, which keeps the factor of the update: ``alpha / r``
        or ``alpha / sqrt(r)`` of the wide layers. A narrow one has fewer columns to sum, all that
        there can be, and not a smaller rank of the same sum, for which a larger factor is meant.
    """
    if not narrow:
        return {}
    # peft takes a key for a regular expression that matches the end of a name
    keys = {name: f"^{re.escape(name)}" for name in narrow}
    ranks = {"rank_pattern": {keys[name]: most for name, most in narrow.items()}}
    if alpha is None:
        return ranks
    share = {name: most / rank for name, most in narrow.items()}
    return {
        **ranks,
        "alpha_pattern": {
            keys[name]: alpha * (math.sqrt(part) if root else part) for name, part in share.items()
        },
    }


def cut_ranks(model: nn.Module, narrow: Mapping[str, int]) -> None:
    """Leave AdaLoRA's narrow layers the ranks that they can have.

    ``peft`` makes every layer of one rank. ``ranknum``, by which it divides an update, stays that
    of the others, and so does the factor; a file of ``peft`` says that the other ranks are pruned.

    Args:
        model: The adapted model.
        narrow: The ranks of the narrow layers, by name.
    """
    for name, most in narrow.items():
        layer: Any = model.get_submodule(name)
        layer.r[ADAPTER_NAME] = most
        for factor, dimension in (("lora_A", 0), ("lora_E", 0), ("lora_B", 1)):
            held = getattr(layer, factor)
            whole = held[ADAPTER_NAME]
            part = whole.detach().narrow(dimension, 0, most).clone()
            held[ADAPTER_NAME] = nn.Parameter(part, requires_grad=whole.requires_grad)


def _ways_out(model: nn.Module, names: tuple[str, ...]) -> str:
    """Return what a model offers to leave some layers out."""
    ways = [f"leave them out with exclude={list(names[:4])}"]
    found = anatomy(model)
    outside = [name for name in names if not inside(name, found.blocks)]
    weighted = [name for name, module in model.named_modules() if "weight" in module._parameters]
    last = weighted[-1] if weighted else ""
    if last in outside and (not found.head or inside(last, found.head)):
        ways.append(f"train the output whole (head='{last}')")
    around = found.blocks[0].split(".")[0] if found.blocks else ""
    if around and len(outside) == len(names) and not any(inside(n, (around,)) for n in names):
        ways.append(f"adapt '{around}' alone (backbone= of the callback)")
    return ", or ".join(ways)
