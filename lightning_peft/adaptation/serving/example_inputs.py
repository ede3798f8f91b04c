"""The inputs on which an exported file is compared with its model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_peft.anatomy.forward import output_of
from lightning_peft.backbones.data_config import DataConfig
from lightning_peft.errors import ExportError

__all__ = ["by_name", "computed", "examples_for"]

_EXAMPLES = 2


def examples_for(
    network: nn.Module, given: Any, preprocessing: DataConfig | None, format: str
) -> Any | None:
    """Return the given example inputs, or random images of the size that a model expects.

    Args:
        network: The model, whose dtype and device the images have.
        given: What the user passed.
        preprocessing: How its images are prepared.
        format: The format of the export, for an error.

    Returns:
        A batch for the forward; ``None`` if there is none and the format needs none.

    Raises:
        ExportError: If the format needs inputs and there are none, or memory cannot hold them.
    """
    if given is not None:
        return given
    if preprocessing is not None:
        like = next(network.parameters())
        random = torch.Generator().manual_seed(0)
        size = (_EXAMPLES, *preprocessing.input_size)
        try:
            return torch.randn(*size, generator=random).to(like)
        except (RuntimeError, TypeError) as error:  # torch has no type for too large a tensor
            raise ExportError(
                f"{format}: expected a size of images that fits into memory, got {size}."
            ) from error
    if format == "safetensors":
        return None
    raise ExportError(
        f"{format}: expected example_inputs, since {type(network).__name__} does not say which "
        "inputs it takes: pass a batch for its forward, such as a tensor or a mapping of "
        "keyword arguments."
    )


def by_name(network: nn.Module, inputs: Any) -> dict[str, Any] | None:
    """Return inputs by the names of the arguments of the model's forward, or None."""
    if inputs is None or isinstance(inputs, Mapping):
        return None if inputs is None else dict(inputs)
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    names = list(inspect.signature(network.forward).parameters)
    return dict(zip(names, given, strict=False))


def computed(network: nn.Module, inputs: dict[str, Any], format: str) -> Tensor:
    """Return the output of the model itself.

    Raises:
        ExportError: If the model cannot compute it, such as of images of another size.
    """
    try:
        return output_of(network, inputs).cpu()
    except Exception as error:  # a forward may raise anything
        shapes = [tuple(one.shape) for one in inputs.values() if isinstance(one, Tensor)]
        told = " ".join(str(error).split())
        raise ExportError(
            f"{format}: expected inputs that {type(network).__name__} computes an output of, got "
            f"tensors of {', '.join(map(str, shapes)) or 'no shape'}: {type(error).__name__}: "
            f"{told:.300}. Pass others, or the preprocessing of the model."
        ) from error
