"""Restoring a model after an error: everything that an injection can change."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lightning_peft.anatomy.names import parameter_at

__all__ = ["restored_after_error"]

_TABLES = (dict, OrderedDict, set)


@contextmanager
def restored_after_error(model: nn.Module, values_of: Collection[str] = ()) -> Iterator[None]:
    """Restore a model if the code inside the context raises any error.

    Restored are the class of every module, its attributes, its tables of children, parameters,
    buffers and hooks, the tensor of each parameter, and which parameters require a gradient.

    Args:
        model: The model.
        values_of: Names of parameters whose values may be overwritten in place; they are copied.
    """
    modules = [(module, type(module), _attributes(module)) for module in model.modules()]
    tensors = [(p, p.data, p.requires_grad) for p in model.parameters()]
    values = {name: parameter_at(model, name).detach().clone() for name in values_of}
    try:
        yield
    except BaseException:
        for module, kind, attributes in modules:
            module.__class__ = kind
            module.__dict__.clear()
            for key, (value, content) in attributes.items():
                if isinstance(value, _TABLES) and content is not None:
                    value.clear()
                    value.update(content)
                module.__dict__[key] = value
        for parameter, data, flag in tensors:
            parameter.data = data
            parameter.requires_grad_(flag)
        with torch.no_grad():
            for name, value in values.items():
                parameter_at(model, name).copy_(value)
        raise


def _attributes(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Return each attribute, with a copy of its content if it is a table."""
    return {
        key: (value, value.copy() if type(value) in _TABLES else None)
        for key, value in module.__dict__.items()
    }
