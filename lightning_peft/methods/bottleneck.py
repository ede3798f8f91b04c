"""The bottleneck that several adapters use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Bottleneck", "activation_problems"]


class QuickGELU(nn.Module):
    """``x * sigmoid(1.702 x)``, the approximation that CLIP uses."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation elementwise."""
        return x * (1.702 * x).sigmoid()


_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "quick_gelu": QuickGELU,
    "none": nn.Identity,
}


class Bottleneck(nn.Module):
    """``scale * up(dropout(act(down(x))))``; zero at the start, since ``up`` is zero.

    The weights of ``up`` are zero and those of ``down`` are not: if both were zero, no weight would
    ever get a gradient.

    Shape:
        ``(..., features_in)`` to ``(..., features_out)``.
    """

    def __init__(
        self,
        features_in: int,
        width: int,
        features_out: int | None = None,
        *,
        activation: str = "gelu",
        dropout: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.down = nn.Linear(features_in, width)
        self.act = _ACTIVATIONS[activation]()
        self.dropout = nn.Dropout(dropout)
        self.up = nn.Linear(width, features_in if features_out is None else features_out)
        self.scale = scale
        nn.init.xavier_uniform_(self.down.weight)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the bottleneck to the last dimension, in the adapter's own dtype."""
        hidden = self.dropout(self.act(self.down(x.to(self.down.weight.dtype))))
        return F.linear(hidden, self.up.weight, self.up.bias) * self.scale


def activation_problems(activation: Any) -> Iterable[str]:
    """Yield the problems of the name of an activation."""
    if activation not in _ACTIVATIONS:
        yield f"expected activation to be one of {', '.join(_ACTIVATIONS)}, got {activation!r}"
