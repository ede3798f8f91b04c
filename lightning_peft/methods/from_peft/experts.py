"""Fused experts: the matrices of a mixture in one parameter of three dimensions, a row for each.

They are no layers, so no selection of layers finds them. ``"experts"`` among the targets means all
of them; ``peft`` adapts them by the name of the parameter (``target_parameters``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from lightning_peft.anatomy.names import inside
from lightning_peft.anatomy.targets import resolve
from lightning_peft.methods.base import Layers, Names, Site

if TYPE_CHECKING:
    from lightning_peft.anatomy import Anatomy

__all__ = ["EXPERTS", "experts_among", "fused_experts", "kept_parameters"]

EXPERTS = "experts"
"""The target that means all fused experts of a model."""

_EXPERT = re.compile(r"expert|moe", re.I)


def fused_experts(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Find the modules that hold the matrices of several experts in one parameter.

    Args:
        model: The backbone, not yet adapted.

    Returns:
        The names of these parameters in each module, by its name.
    """
    found = {}
    for name, module in model.named_modules():
        told = _EXPERT.search(name.rpartition(".")[2]) or _EXPERT.search(type(module).__name__)
        if told is None or isinstance(module, _ConvNd):
            continue
        own = [(k, p) for k, p in module._parameters.items() if p is not None and not is_lazy(p)]
        fused = [key for key, parameter in own if parameter.ndim == 3]
        if fused:
            found[name] = tuple(fused)
    return found


def experts_among(
    anatomy: Anatomy, model: nn.Module, targets: str | Iterable[str]
) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Split targets into those that select layers and the fused experts that the others mean.

    ``"experts"`` means all of them, if there are any; ``"experts.down_proj"`` one in each mixture,
    if no layer has such a name.

    Args:
        anatomy: The backbone's anatomy.
        model: The backbone.
        targets: The targets.

    Returns:
        The entries that are left, and the modules with their parameters, in model order.
    """
    places = [
        (name, key)
        for name, keys in fused_experts(model).items()
        if not inside(name, anatomy.head)
        for key in keys
    ]
    ends = [f".{name}" for name, _ in model.named_modules()]
    entries = (targets,) if isinstance(targets, str) else tuple(targets)
    left, meant = [], set()
    for entry in entries:
        taken: list[tuple[str, str]] = []
        if entry == EXPERTS:
            taken = places
        elif not any(end.endswith(f".{entry}") for end in ends):
            taken = [place for place in places if f".{'.'.join(place)}".endswith(f".{entry}")]
        meant.update(taken)
        if not taken:
            left.append(entry)
    return tuple(left), tuple(place for place in places if place in meant)


def kept_parameters(
    anatomy: Anatomy, model: nn.Module, sites: tuple[Site, ...], layers: Layers, exclude: Names
) -> tuple[Site, ...]:
    """Return the sites of parameters that a choice of blocks and exclusions leave.

    Args:
        anatomy: The backbone's anatomy.
        model: The backbone.
        sites: The sites.
        layers: The choice of blocks.
        exclude: Modules to leave out.
    """
    if not sites or (layers is None and exclude is None):
        return sites
    owners = tuple(dict.fromkeys(site.module for site in sites))
    kept = resolve(anatomy, model, owners, layers=layers, exclude=exclude, containers=True)
    return tuple(site for site in sites if site.module in kept)
