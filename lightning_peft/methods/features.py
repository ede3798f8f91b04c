"""The features of a layer: how many it has, and in which dimension of its output."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

__all__ = ["features_of", "first", "is_transposed", "spatial_dims", "with_first"]


def features_of(module: nn.Module) -> tuple[int, int]:
    """Return the numbers of input and output features (or channels) of a layer.

    Args:
        module: A linear layer, transformers' ``Conv1D``, a convolution, a norm, or
            ``nn.MultiheadAttention``.

    Raises:
        TypeError: If it is none of these.
    """
    for names in (
        ("in_features", "out_features"),
        ("nx", "nf"),
        ("in_channels", "out_channels"),
        ("num_features", "num_features"),
        ("embed_dim", "embed_dim"),
    ):
        if all(isinstance(getattr(module, name, None), int) for name in names):
            return getattr(module, names[0]), getattr(module, names[1])
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and weight.ndim == 1:
        return len(weight), len(weight)
    raise TypeError(f"{type(module).__name__} does not say how many features it has")


def is_transposed(module: nn.Module) -> bool:
    """Whether a layer is GPT-2's ``Conv1D``, a linear layer with a transposed weight."""
    return type(module).__name__ == "Conv1D"


def spatial_dims(host: nn.Module) -> int | None:
    """Return how many dimensions of a layer's output come after its features or channels.

    Args:
        host: A layer.

    Returns:
        0 for features in the last dimension, as most layers have them, 2 for ``(B, C, H, W)`` and
        ``(C, H, W)``; ``None`` for a layer whose features are in dimension 1, whatever follows.
    """
    if isinstance(host, nn.modules.batchnorm._BatchNorm | nn.GroupNorm):
        return None
    kind = next((k.__name__ for k in type(host).__mro__ if _FLAT.search(k.__name__)), "")
    if kind:  # convolutions, InstanceNorm, the norms of timm and torchvision over (B, C, H, W)
        return int(_FLAT.findall(kind)[-1])
    return 2 if getattr(host, "data_format", None) == "channels_first" else 0


_FLAT = re.compile(r"([123])d")


def first(value: Any) -> Tensor:
    """Return the tensor of an output: the first entry if it is a tuple, as for attention."""
    found = value[0] if isinstance(value, tuple | list) else value
    assert isinstance(found, Tensor)
    return found


def with_first(value: Any, tensor: Tensor) -> Any:
    """Return an output with the tensor of :func:`first` replaced."""
    if isinstance(value, tuple | list):
        return type(value)((tensor, *value[1:]))
    return tensor
