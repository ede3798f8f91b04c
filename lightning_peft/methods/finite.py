"""Whether numbers may be written over others: finite, and how far they are rounded."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["all_finite", "exact", "lost", "refuse_not_finite"]


def all_finite(tensor: Tensor) -> bool:
    """Whether every number of a tensor is finite, mostly in one pass over it."""
    # a sum with NaN or an infinity in it is never finite; one of finite numbers may overflow
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def exact(tensor: Tensor) -> Tensor:
    """Return a tensor in float32, or in its own dtype if that is finer."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def lost(values: Tensor, rounded: Tensor) -> float:
    """Return the largest change that rounding made, relative to the largest value.

    Args:
        values: The values before.
        rounded: The values after, of another dtype.
    """
    if not values.numel():
        return 0.0
    change = (rounded.to(values.dtype) - values).abs().max()
    return float(change / values.abs().max().clamp_min(1e-30))


def refuse_not_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Refuse tensors with a number that is not finite.

    Args:
        tensors: The tensors, by name.
        what: Where they are, for the error.

    Raises:
        ValueError: Naming all of them.
    """
    broken = [
        name
        for name, tensor in tensors.items()
        if (tensor.is_floating_point() or tensor.is_complex())
        and not tensor.is_meta
        and not all_finite(tensor)
    ]
    if broken:
        more = " ..." if len(broken) > 8 else ""
        raise ValueError(
            f"expected finite numbers in {what}, got some that are not in "
            f"{', '.join(broken[:8])}{more}. Load a state from before it diverged"
        )
