"""Expressing a selection of modules in ``peft``'s configs."""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lightning_peft.errors import TargetError, near, some
from lightning_peft.methods.base import Site
from lightning_peft.methods.in_weight.part import layer_at

if TYPE_CHECKING:
    from peft import PeftConfig

__all__ = [
    "fan_in_fan_out",
    "matched_by_peft",
    "names_of",
    "narrow_layers",
    "rank_patterns",
    "rank_problems",
    "target_spec",
]


def names_of(sites: tuple[Site, ...]) -> tuple[str, ...]:
    """Return the names of the modules that sites adapt, without those of single parameters."""
    return tuple(site.module for site in sites if not site.parameter)


def narrow_layers(model: nn.Module, names: Iterable[str], rank: int) -> dict[str, int]:
    """Return the smaller side of each layer where it is below a rank.

    Args:
        model: The backbone.
        names: The modules to adapt.
        rank: The requested rank.
    """
    found = {}
    for name in names:
        weight = getattr(layer_at(model, name), "weight", None)
        if isinstance(weight, Tensor) and weight.ndim >= 2:
            most = min(weight.shape[0], weight[0].numel())
            if rank > most:
                found[name] = most
    return found


def rank_problems(model: nn.Module, names: tuple[str, ...], rank: int) -> Iterable[str]:
    """Yield the modules whose smaller side is below a rank.

    Args:
        model: The backbone.
        names: The modules to adapt.
        rank: The requested rank.
    """
    small = [f"{name} (at most {most})" for name, most in narrow_layers(model, names, rank).items()]
    if small:
        more = f" and {len(small) - 8} more" if len(small) > 8 else ""
        yield (
            f"expected a rank no larger than the layer, got {rank} for "
            f"{', '.join(small[:8])}{more}. Lower the rank, or leave them out with exclude="
        )


def rank_patterns(narrow: Mapping[str, int], rank: int, alpha: float, root: bool) -> dict[str, Any]:
    """Return ``peft``'s settings of layers whose rank is below that of the others.

    Args:
        narrow: Their ranks, by name.
        rank: The rank of the others.
        alpha: The ``lora_alpha`` of the others.
        root: Whether the update is divided by the root of the rank (rsLoRA).

    Returns:
        ``rank_pattern`` and ``alpha_pattern``, which keeps the factor of the update.
    """
    if not narrow:
        return {}
    # peft takes a key for a regular expression that matches the end of a name
    keys = {name: f"^{re.escape(name)}" for name in narrow}
    share = {name: most / rank for name, most in narrow.items()}
    return {
        "rank_pattern": {keys[name]: most for name, most in narrow.items()},
        "alpha_pattern": {
            keys[name]: alpha * (math.sqrt(part) if root else part) for name, part in share.items()
        },
    }


def target_spec(model: nn.Module, names: tuple[str, ...]) -> list[str] | str:
    """Return a selection of modules as ``peft``'s ``target_modules``, in the shortest exact form.

    ``peft`` matches an entry of a list against the end of a module's name. If the last parts of the
    names (``["proj", "qkv"]``) match exactly the selection, they are used; otherwise the full
    names, and if even these would match more, a regular expression.
    """
    every = [name for name, _ in model.named_modules() if name]
    wanted = set(names)

    def matched(entries: Iterable[str]) -> set[str]:
        ends = tuple(f".{entry}" for entry in entries)
        return {name for name in every if name in entries or name.endswith(ends)}

    short = {name.rpartition(".")[2] for name in names}
    if matched(short) == wanted:
        return sorted(short)
    if matched(wanted) == wanted:
        return list(names)
    return "|".join(re.escape(name) for name in names)


def fan_in_fan_out(model: nn.Module, names: tuple[str, ...]) -> dict[str, bool]:
    """Return ``peft``'s setting for GPT-2's ``Conv1D``, a linear layer with a transposed weight."""
    kinds = {type(layer_at(model, name)).__name__ for name in names}
    return {"fan_in_fan_out": True} if kinds == {"Conv1D"} else {}


def matched_by_peft(config: PeftConfig, model: nn.Module) -> tuple[str, ...]:
    """Return the modules that a config's own ``target_modules`` match, by ``peft``'s rules.

    Raises:
        TargetError: If they match nothing.
    """
    from peft.tuners.tuners_utils import check_target_module_exists

    config = copy.deepcopy(config)
    names = [name for name, _ in model.named_modules() if name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft repeats the warnings when it injects
        found = tuple(name for name in names if check_target_module_exists(config, name))
    if not found and not getattr(config, "target_parameters", None):
        wanted = getattr(config, "target_modules", None)
        words = [wanted] if isinstance(wanted, str) else sorted(wanted or ())
        hints = some([f"'{word}': {near(word, _ends(names))}" for word in words], separator="; ")
        raise TargetError(f"expected target_modules to match modules, matched none. {hints}")
    return found


def _ends(names: list[str]) -> set[str]:
    return {name.rpartition(".")[2] for name in names}
