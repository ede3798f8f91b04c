"""A forward that leaves no trace: random states, buffers, attributes and modes are as before."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from lightning_peft.adaptation.handle import Adaptation
from lightning_peft.caching.trace import devices_of, undisturbed

__all__ = ["isolated"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_OURS = ("lightning_peft", "torch", "peft", "timm", "transformers", "accelerate", "bitsandbytes")


@contextmanager
def isolated(adaptation: Adaptation, inputs: Any, *, bare: bool = False) -> Iterator[None]:
    """Run forwards in evaluation mode, without gradients and without side effects.

    Hooks of others are off, since they may keep what they see. Counters of operations do not count.

    Args:
        adaptation: The adapted backbone whose forward runs.
        inputs: Its inputs, for their devices.
        bare: Whether the backbone has the layers that it had before it was adapted.
    """
    model = adaptation.model
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    cached, fast = torch.is_autocast_cache_enabled(), torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(_disable_current_modes())
        stack.enter_context(torch.no_grad())
        if bare:
            stack.enter_context(adaptation.disabled())  # what was rewritten or is trained in place
        stack.enter_context(undisturbed(model, devices_of((inputs, list(model.parameters())))))
        stack.enter_context(_attributes_kept(model))
        # a weight that autocast casts here has no graph, and the step would take it from the cache
        torch.set_autocast_cache_enabled(False)
        torch.backends.mha.set_fastpath_enabled(False)  # it fills padded places with zeros
        try:
            if bare:
                adaptation.detach_adapters()
            for module in model.modules():
                module.__dict__["training"] = False
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            torch.set_autocast_cache_enabled(cached)
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)


@contextmanager
def _attributes_kept(model: nn.Module) -> Iterator[None]:
    """Restore classes, children, hooks and attributes, those in lists and dicts included."""
    modules = list(model.modules())
    classes = [type(module) for module in modules]
    tables = [dict(module.__dict__) for module in modules]
    contents = [
        (value, value.copy())
        for table in tables
        for value in table.values()
        if type(value) in (list, dict, set, OrderedDict)
    ]
    for module, table in zip(modules, tables, strict=True):
        for key, value in table.items():
            if isinstance(value, Tensor):
                module.__dict__[key] = value.clone()  # a count that is added to in place
            elif key in _HOOKS:
                for number in [n for n, hook in value.items() if not _is_known(hook)]:
                    del value[number]
        if "_trainer" in table:  # of a LightningModule, which would log
            module.__dict__["_trainer"] = None
    try:
        yield
    finally:
        for module, kind, table in zip(modules, classes, tables, strict=True):
            module.__class__ = kind
            module.__dict__.clear()
            module.__dict__.update(table)
        for value, before in contents:
            value.clear()
            value.extend(before) if isinstance(value, list) else value.update(before)


def _is_known(hook: Any) -> bool:
    """Whether a hook belongs to the model, and is not somebody's who looks at it."""
    function = getattr(hook, "func", hook)  # of a partial
    place = getattr(function, "__module__", None) or type(function).__module__
    return str(place).partition(".")[0] in _OURS
