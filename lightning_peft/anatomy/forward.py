"""One forward pass of a model in evaluation mode, and the first tensor that comes out of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["first_tensor", "in_evaluation_mode", "output_of"]


def output_of(model: nn.Module, inputs: Any) -> Tensor:
    """Run a model in evaluation mode without gradients; return its first output tensor in float32.

    Args:
        model: The model; its modes are restored afterwards.
        inputs: A tensor, a tuple of positional or a mapping of keyword arguments.
    """
    with in_evaluation_mode(model), torch.no_grad():
        if isinstance(inputs, Mapping):
            output = model(**inputs)
        else:
            output = model(*(inputs if isinstance(inputs, tuple) else (inputs,)))
    return first_tensor(output).float()


@contextmanager
def in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Hold a module in evaluation mode inside the context; restore every mode afterwards.

    Args:
        model: The module.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def first_tensor(output: Any) -> Tensor:
    """Return the first tensor of a model's output.

    Args:
        output: A tensor, a tuple, a mapping, or one of transformers' output classes, which are
            mappings.
    """
    while not isinstance(output, Tensor):
        output = next(iter(output.values() if isinstance(output, Mapping) else output))
    return output
