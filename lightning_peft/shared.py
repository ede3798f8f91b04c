"""Tensors that several modules hold together, such as tied embeddings or VeRA's projections."""

from __future__ import annotations

from itertools import chain

from torch import nn

__all__ = ["shared_names"]


def shared_names(model: nn.Module) -> dict[str, str]:
    """Find the parameters and buffers that a model has under more than one name.

    Args:
        model: Any module.

    Returns:
        For each further name of such a tensor, its first name.
    """
    first: dict[int, str] = {}
    tensors = chain(
        model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    )
    return {
        name: first[id(tensor)]
        for name, tensor in tensors
        if first.setdefault(id(tensor), name) != name
    }
