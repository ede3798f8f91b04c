"""Modules that a config of ``peft`` trains whole: ``modules_to_save``, and those of its task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lightning_peft.anatomy.names import inside
from lightning_peft.methods.from_peft.defaults import NEW_HEADS

__all__ = ["read_elsewhere", "saved_whole"]


def saved_whole(model: nn.Module, options: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the modules that are trained whole and get no adapter: ``modules_to_save``.

    Args:
        model: The backbone.
        options: The settings of a config of ``peft``; its task type names modules, too.
    """
    # as peft has it, without a dot: 'classifier' is 'pre_classifier', too
    task = NEW_HEADS.get(str(options.get("task_type")), ())
    ends = (*(options.get("modules_to_save") or ()), *task)
    return tuple(name for name, _ in model.named_modules() if name.endswith(ends))


def read_elsewhere(model: nn.Module, roots: tuple[str, ...]) -> tuple[str, ...]:
    """Return the parameters of modules that are trained whole, which have to be copies for that.

    One that another module reads, which is not trained whole, is such a one; of several modules
    that are trained whole, the first one keeps it.

    Args:
        model: The backbone.
        roots: The modules.
    """
    readers: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        readers.setdefault(id(parameter), []).append(name)
    found: list[str] = []
    for names in readers.values():
        holders = {name: next((r for r in roots if inside(name, (r,))), None) for name in names}
        if len(names) == 1 or set(holders.values()) == {None}:
            continue
        kept = None if None in holders.values() else holders[names[0]]
        found += [name for name in names if holders[name] is not None and holders[name] != kept]
    return tuple(found)
