"""Whether a merged layer still computes the same function, by running it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lightning_peft.anatomy.forward import in_evaluation_mode

__all__ = ["is_known", "probe_input", "probed", "refuse_other_function"]

_KNOWN = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding, nn.MultiheadAttention),
    *(nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
)
_TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 1e-1}


def is_known(layer: nn.Module) -> bool:
    """Whether a layer's class is one of torch's, or the ``Conv1D`` of transformers."""
    kind = type(layer)
    library = kind.__module__.partition(".")[0]
    return kind in _KNOWN or (kind.__name__ == "Conv1D" and library == "transformers")


def probe_input(layer: nn.Module, features: int, spatial: int | None) -> Tensor:
    """Return a small input for a layer, which depends on nothing but its sizes.

    Args:
        layer: A linear layer, convolution or norm.
        features: Its input features or channels.
        spatial: How many dimensions come after them; ``None`` if any number may.
    """
    own = next(layer.parameters())
    after: tuple[int, ...] = (4,) * (2 if spatial is None else spatial)
    if isinstance(layer, _ConvNd):
        sizes = zip(layer.kernel_size, layer.dilation, strict=True)
        after = tuple((size - 1) * step + 3 for size, step in sizes)
    elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm3d):
        after = (4,) if isinstance(layer, nn.BatchNorm1d) else (4, 4, 4)
    shape = (2, features, *after) if after else (2, 3, features)
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return drawn.to(own.device, own.dtype)


@torch.no_grad()
def probed(layer: nn.Module, x: Tensor) -> Tensor:
    """Return a layer's output in evaluation mode; its modes are restored.

    Args:
        layer: The layer, with its hooks.
        x: The input.
    """
    with in_evaluation_mode(layer):
        output: Any = layer(x)
    found = output[0] if isinstance(output, tuple) else output
    assert isinstance(found, Tensor)
    return found


def refuse_other_function(before: Tensor, after: Tensor) -> None:
    """Refuse a merged layer that computes another function than the adapter beside it.

    Args:
        before: The output with the adapter beside the weights.
        after: The output with the adapter merged.

    Raises:
        ValueError: If the outputs differ by more than rounding.
    """
    error = float((after - before).abs().max() / before.abs().max().clamp_min(1e-12))
    if not error <= _TOLERANCE.get(before.dtype, 1e-4):
        raise ValueError(
            "does more with its weight than multiply by it, and with the merged weight its output "
            f"would be {error:.1e} off. Keep the adapter beside the weights"
        )
