"""Whether numbers are finite, before they are written over others."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["all_finite", "refuse_not_finite"]


def all_finite(tensor: Tensor) -> bool:
    """Whether every number of a tensor is finite, mostly in one pass over it."""
    # a sum with NaN or an infinity in it is never finite; one of finite numbers may overflow
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


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
