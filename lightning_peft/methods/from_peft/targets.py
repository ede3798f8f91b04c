"""Expressing a selection of modules in ``peft``'s configs."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from torch import nn

from lightning_peft.errors import MethodError, TargetError, near, some
from lightning_peft.methods.base import Site
from lightning_peft.methods.in_weight.part import layer_at

if TYPE_CHECKING:
    from peft import PeftConfig

__all__ = [
    "fan_in_fan_out",
    "ia3_targets",
    "matched_by_peft",
    "names_of",
    "refused_by_peft",
    "target_spec",
    "without_refused",
]


def names_of(sites: tuple[Site, ...]) -> tuple[str, ...]:
    """Return the names of the modules that sites adapt, without those of single parameters."""
    return tuple(site.module for site in sites if not site.parameter)


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


def refused_by_peft(tuner: str, model: nn.Module, names: Iterable[str]) -> frozenset[str]:
    """Return the layers that ``peft`` refuses in some architectures, such as Mamba's ``out_proj``.

    The kernels of these models read the weight past its layer.

    Args:
        tuner: The tuner's name.
        model: The backbone.
        names: Names of layers.
    """
    try:
        from peft.tuners.tuners_utils import _check_lora_target_modules_mamba as check
    except ImportError:  # another peft
        return frozenset()
    config: Any = SimpleNamespace(peft_type=tuner)
    found = set()
    for name in names:
        try:
            check(config, model, name.rpartition(".")[2])
        except ValueError:
            found.add(name)
    return frozenset(found)


def without_refused(
    tuner: str, model: nn.Module, names: Iterable[str], targets: str | Iterable[str] | None
) -> frozenset[str]:
    """Return the layers that are left out since ``peft`` refuses them and nobody named them.

    Args:
        tuner: The tuner's name.
        model: The backbone.
        names: Names of the selected layers.
        targets: What selected them.
    """
    entries = (targets,) if isinstance(targets, str) or targets is None else tuple(targets)
    if not {None, "auto", "all-linear"} & set(entries):
        return frozenset()
    ends = tuple(f".{entry}" for entry in entries)
    asked = {name for name in names if f".{name}".endswith(ends)}
    return refused_by_peft(tuner, model, names) - asked


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


def ia3_targets(names: Sequence[str], feedforward: str | Sequence[str]) -> dict[str, str]:
    """Return IA3's targets by whole names; ``peft`` wants those of MLPs to be a part of them.

    Args:
        names: The layers to adapt.
        feedforward: ``feedforward_modules``: the ends of names, or a regular expression.

    Raises:
        MethodError: If it is no regular expression.
    """
    if isinstance(feedforward, str):
        try:
            inner = [name for name in names if re.fullmatch(feedforward, name)]
        except re.error as error:
            raise MethodError(
                "ia3: expected feedforward_modules to be names, or a regular expression, got "
                f"{feedforward!r} ({error})."
            ) from error
    else:
        ends = tuple(f".{entry}" for entry in feedforward)
        inner = [name for name in names if f".{name}".endswith(ends)]
    return {
        "target_modules": "|".join(re.escape(name) for name in names),
        "feedforward_modules": "|".join(re.escape(name) for name in inner),
    }
