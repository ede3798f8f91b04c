"""The dense layers that can take the place of quantised ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from torch import nn

from lightning_peft.adaptation.precision import as_dtype
from lightning_peft.anatomy.names import inside
from lightning_peft.anatomy.quantised import is_code, quantised_layers
from lightning_peft.errors import MethodError
from lightning_peft.methods.merging_codes import become_dense

__all__ = ["dense_dtype", "dtype_around", "make_dense"]


def dense_dtype(
    model: nn.Module, adapted: Iterable[str], wanted: bool | str | torch.dtype
) -> torch.dtype | None:
    """Return the dtype of the layers that take the place of quantised ones.

    Args:
        model: The adapted backbone.
        adapted: Names of the adapted modules.
        wanted: Whether they do, or their dtype.

    Returns:
        The dtype that is wanted, or that of most of the backbone's other weights, with which they
        compute; ``None`` if quantised layers stay.

    Raises:
        MethodError: If it is no dtype, or nothing that is adapted is quantised.
    """
    if wanted is False or wanted is None:
        return None
    found = None if wanted is True else as_dtype(wanted)
    roots = tuple(adapted)
    if not any(inside(name, roots) for name, _, _ in quantised_layers(model)):
        raise MethodError(
            f"dequantize={wanted!r}: expected quantised layers among those that are adapted, got "
            "none. Leave it out."
        )
    return found or dtype_around(model)


def make_dense(model: nn.Module) -> None:
    """Make dense layers of all quantised ones of a model, in place."""
    dtype = dtype_around(model)
    for _, layer, scheme in list(quantised_layers(model)):
        become_dense(layer, {"weight": scheme.dequantised(layer).float()}, dtype)


def dtype_around(model: nn.Module) -> torch.dtype:
    """Return the dtype of most of the frozen weights of a model that are numbers."""
    counts: Counter[torch.dtype] = Counter()
    for parameter in model.parameters():
        if parameter.is_floating_point() and not is_code(parameter) and not parameter.requires_grad:
            counts[parameter.dtype] += parameter.numel()
    return counts.most_common(1)[0][0] if counts else torch.float32
