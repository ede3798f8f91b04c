"""The quantised layers of a model: which they are, their sizes, their state, their bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_peft.anatomy.quantised.schemes import SCHEMES, Scheme

__all__ = [
    "Counted",
    "counted",
    "is_code",
    "numel_of",
    "quantised_layers",
    "scheme_of",
    "size_of",
    "sizes_of",
    "state_beside",
    "tensors_of",
]


def is_code(tensor: Tensor) -> bool:
    """Whether a weight is held as codes, so that numbers cannot be written into it.

    Args:
        tensor: A parameter: integers, or a tensor of quanto or torchao, which looks like one of
            floating-point numbers.
    """
    own: Any = getattr(type(tensor), "dequantize", None)
    return not (tensor.is_floating_point() or tensor.is_complex()) or (
        own is not None and own is not torch.Tensor.dequantize
    )


def scheme_of(layer: nn.Module) -> Scheme | None:
    """Return how a layer holds its weight as codes; ``None`` if it does not, or nobody knows how.

    Args:
        layer: Any module; of a layer of ``peft``, the layer that it adapts is asked.
    """
    return next((scheme for scheme in SCHEMES if scheme.holds(layer)), None)


def quantised_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, Scheme]]:
    """Yield the quantised layers of a known scheme in a model, with their names.

    Args:
        model: Any module.
    """
    for name, module in model.named_modules():
        scheme = scheme_of(module)
        if scheme is not None:
            yield name, module, scheme


def size_of(layer: nn.Module) -> tuple[int, ...] | None:
    """Return the shape of a layer's weight, also where it is packed into codes.

    Args:
        layer: A layer, or one of ``peft`` around it.

    Returns:
        The shape; ``None`` for a layer without a weight.
    """
    outputs, inputs = (getattr(layer, key, None) for key in ("out_features", "in_features"))
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor):  # HQQ has none
        sizes = isinstance(outputs, int) and isinstance(inputs, int)
        return (outputs, inputs) if sizes and scheme_of(layer) is not None else None  # type: ignore[return-value]
    if is_code(weight) and isinstance(outputs, int) and isinstance(inputs, int):
        return outputs, inputs
    return tuple(weight.shape)


def state_beside(model: nn.Module) -> set[str]:
    """Return the names in a model's state dict that belong to its codes and are no parameters.

    They are the base's own: bitsandbytes writes them and does not read them back.

    Args:
        model: Any module.
    """
    roots = tuple(f"{name}." if name else "" for name, _, _ in quantised_layers(model))
    if not roots:
        return set()
    own = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    own |= {name for name, _ in model.named_buffers(remove_duplicate=False)}
    return {
        name
        for name in model.state_dict()
        if name not in own and name.startswith(roots) and not name.endswith("_extra_state")
    }


def numel_of(parameter: Tensor) -> int:
    """Return how many values a parameter stands for: bitsandbytes packs two into a byte.

    Args:
        parameter: A parameter.
    """
    packed = any(kind.__name__ == "Params4bit" for kind in type(parameter).__mro__)
    if packed and not parameter.is_floating_point():
        return 2 * parameter.numel() * parameter.element_size()
    return parameter.numel()


def sizes_of(model: nn.Module) -> dict[str, int]:
    """Return how many values each parameter of a model stands for, by its name.

    Args:
        model: Any module.
    """
    found = {n: 0 if is_lazy(p) else numel_of(p) for n, p in model.named_parameters()}
    for name, layer, scheme in quantised_layers(model):
        shape = size_of(layer)
        key = f"{name}.{scheme.packs}" if name else scheme.packs
        if key in found and shape is not None:
            found[key] = shape[0] * shape[1]
    return found


def tensors_of(model: nn.Module) -> list[Tensor]:
    """Return the tensors that a model holds in memory, those beside its codes among them.

    Args:
        model: Any module.
    """
    plain = [p for p in model.parameters() if not (is_code(p) and p.is_floating_point())]
    return [*plain, *model.buffers(), *counted(model).beside]


@dataclass(frozen=True)
class Counted:
    """The quantised layers of a model.

    Attributes:
        kinds: How many layers of each kind.
        values: How many values their codes stand for.
        beside: The tensors beside the codes, which are no parameters.
    """

    kinds: dict[str, int]
    values: int
    beside: tuple[Tensor, ...]


def counted(model: nn.Module) -> Counted:
    """Count the quantised layers of a model.

    Args:
        model: Any module.
    """
    kinds: Counter[str] = Counter()
    values, beside = 0, []
    for _, layer, scheme in quantised_layers(model):
        kinds[scheme.name(layer)] += 1
        shape = size_of(layer)
        values += 0 if shape is None else shape[0] * shape[1]
        parameters = {id(p) for p in layer.parameters()}
        beside += [t for t in scheme.state(layer).values() if id(t) not in parameters]
    return Counted(dict(sorted(kinds.items())), values, tuple(beside))
