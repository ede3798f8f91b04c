"""Layers of ``peft`` that read inputs of shape ``(B, N, C)`` only, for inputs of any shape."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from lightning_peft.kernels.instances import assembled, derived, ingredients

__all__ = ["TOKENS_ONLY", "take_any_shape"]

TOKENS_ONLY = ("GRALORA", "OFT")
"""Tuners whose linear layers take the batch and the tokens apart, in ``peft`` 0.21."""


def take_any_shape(layer: Any) -> None:
    """Make a linear layer of ``peft`` take ``(..., C)``: each row of features is a token.

    Args:
        layer: The layer; its class becomes a subclass of what it was.
    """
    kind: Any = type(layer)
    layer.__class__ = _of_any_shape(kind)


def _restore(kind: Any, also: Any) -> Any:
    return object.__new__(_of_any_shape(assembled(kind, also)))


@functools.cache
def _of_any_shape(kind: Any) -> Any:
    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters or self.merged_adapters or x.ndim == 3:
            own: Tensor = kind.forward(self, x, *args, **kwargs)
            return own
        rows = x.reshape(1, -1, x.shape[-1])
        output: Tensor = kind.forward(self, rows, *args, **kwargs)
        return output.reshape(*x.shape[:-1], output.shape[-1])

    return derived((kind,), _restore, ingredients(kind), forward=forward)
