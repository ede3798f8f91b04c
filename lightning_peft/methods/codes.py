"""Weights that are held as codes: integers of bitsandbytes, tensors that dequantise themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lightning_peft.anatomy.forward import in_evaluation_mode
from lightning_peft.anatomy.quantised import is_code

__all__ = ["BESIDE", "DENSE", "code_names", "is_code", "probe", "refuse_codes"]

BESIDE = (
    "Keep the adapter beside the weights, or load it into the backbone in floating point and merge "
    "there"
)
"""What to do where codes cannot take an adapter."""

DENSE = "Keep the adapter beside the weights, or make dense layers of them: merge(dequantize=True)"
"""What to do where it is known what the codes stand for."""

_INPUTS = 64


def code_names(module: nn.Module) -> Iterator[str]:
    """Yield the names of the parameters of a module, and of those in it, that are codes."""
    return (name for name, parameter in module.named_parameters() if is_code(parameter))


def refuse_codes(module: nn.Module, name: str) -> None:
    """Refuse to compute a sum with the parameters of a module itself that are codes.

    Args:
        module: The module.
        name: Its name in the model, for the error.

    Raises:
        ValueError: Naming the first of them.
    """
    own = [(key, p) for key, p in module._parameters.items() if p is not None]
    found, parameter = next(((key, p) for key, p in own if is_code(p)), (None, None))
    if found is None or parameter is None:
        return
    kind = "" if type(parameter) is nn.Parameter else f" ({type(parameter).__name__})"
    raise ValueError(
        f"expected weights of floating-point numbers, got codes of {parameter.dtype}{kind} in "
        f"{name}.{found}, which cannot hold the sum. {BESIDE}"
    )


@torch.no_grad()
def probe(layer: nn.Module, base: Any) -> Tensor:
    """Compute the output of a layer for inputs that are the same at every call.

    Args:
        layer: A layer of ``peft``, or the layer in it; its mode is as before afterwards.
        base: The quantised layer, which says what the inputs look like.

    Returns:
        The output, in float32.

    Raises:
        NotImplementedError: If it does not say what its inputs look like.
    """
    weight, bias = getattr(base, "weight", None), getattr(base, "bias", None)
    dtype = torch.float32
    for tensor in (bias, weight):
        dtype = tensor.dtype if tensor is not None and tensor.is_floating_point() else dtype
    random = torch.Generator().manual_seed(0)
    if isinstance(getattr(base, "in_features", None), int):
        inputs = torch.randn(_INPUTS, base.in_features, generator=random).to(dtype)
    elif isinstance(base, nn.Conv2d):
        sides = (2 * size for size in base.kernel_size)
        inputs = torch.randn(_INPUTS, base.in_channels, *sides, generator=random).to(dtype)
    elif isinstance(base, nn.Embedding):
        inputs = torch.arange(base.num_embeddings)
    else:
        raise NotImplementedError(f"{type(base).__name__} holds codes that cannot be measured")
    inputs = inputs.to(next(base.parameters()).device)
    if inputs.is_floating_point():  # else bitsandbytes packs its weights anew for inference
        inputs.requires_grad_()
    with in_evaluation_mode(layer):
        output: Tensor = layer(inputs)
    return output.float()
