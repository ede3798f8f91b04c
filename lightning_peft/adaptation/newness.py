"""Whether weights look as an initialisation leaves them, by their values alone.

Training leaves no weight uniform, no gain of a norm at exactly one and no bias at exactly zero. A
part with the look of a fresh initialisation beside a backbone without it is new, and frozen it
computes nothing of use.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from lightning_peft.anatomy.tree import is_norm

__all__ = ["is_trained", "looks_new"]

_LEAST, _MOST = 256, 65_536  # values that tell a distribution; values that are looked at
_UNIFORM, _NORMAL = 1.8, 3.0  # the fourth moment over the squared second


def looks_new(module: nn.Module) -> bool:
    """Whether every weight of a module looks freshly initialised.

    Weights are uniform, or normal with one of the usual deviations; biases are zero, or uniform
    like their weight; gains of norms are constant. A module without a matrix that is large enough
    to tell (256 values) does not look new, nor does one whose values are not there.

    Args:
        module: The module; its values are read, at most 65,536 of each weight.
    """
    told = False
    for leaf in _leaves([module]):
        weight = _values(leaf._parameters.get("weight"))
        if is_norm(leaf):
            if weight is not None and not _constant(weight):
                return False
        elif weight is not None and weight.dim() > 1 and weight.numel() >= _LEAST:
            if not (_is_fresh(leaf, weight) and _bias_is_fresh(leaf)):
                return False
            told = True
    return told


def is_trained(modules: Iterable[nn.Module]) -> bool:
    """Whether modules look trained, as the blocks of a pretrained backbone do.

    The gains of norms tell: an initialisation leaves them constant. Without norms, the weights do.

    Args:
        modules: The modules, such as the repeated blocks.
    """
    norms, weights = [], []
    for leaf in _leaves(modules):
        weight = _values(leaf._parameters.get("weight"))
        if weight is not None and is_norm(leaf):
            norms.append(not _constant(weight))
        elif weight is not None and weight.dim() > 1 and weight.numel() >= _LEAST:
            weights.append(_shape_of(weight) is None)
    seen = norms or weights[:16]
    return bool(seen) and 2 * sum(seen) > len(seen)


def _leaves(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    for module in modules:
        yield from (part for part in module.modules() if part._parameters.get("weight") is not None)


def _values(tensor: Tensor | None) -> Tensor | None:
    """Return a weight if its values can be read as they are."""
    if tensor is None or type(tensor) not in (Tensor, nn.Parameter):
        return None  # quantised, sharded, not there yet
    return None if tensor.is_meta or not tensor.is_floating_point() else tensor.detach()


def _constant(tensor: Tensor) -> bool:
    return bool((tensor == tensor.flatten()[0]).all())


def _sample(tensor: Tensor) -> Tensor:
    flat = tensor.flatten()
    flat = flat[flat != 0]  # the row of an embedding for padding
    return flat[:: max(1, flat.numel() // _MOST)].double()


def _shape_of(weight: Tensor) -> str | None:
    """Return whether values are constant, uniform or normal, up to their own noise."""
    if _constant(weight):
        return "constant"
    values = _sample(weight)
    deviation = values.std().item()
    if not math.isfinite(deviation) or deviation == 0:  # too few values, NaN
        return None
    values = (values - values.mean()) / deviation
    fourth = (values**4).mean().item()
    noise = 1 / math.sqrt(values.numel())
    if abs(fourth - _UNIFORM) < 4 * noise and values.abs().max().item() < math.sqrt(3) + 6 * noise:
        return "uniform"
    return "normal" if abs(fourth - _NORMAL) < 20 * noise else None


def _is_fresh(leaf: nn.Module, weight: Tensor) -> bool:
    shape = _shape_of(weight)
    if shape != "normal":
        return shape is not None
    rows = weight.shape[0] * weight[0, 0].numel()
    columns = weight[0].numel()
    usual = [0.01, 0.02, *(math.sqrt(2 / n) for n in (rows, columns, rows + columns))]
    usual += [1 / math.sqrt(rows), 1 / math.sqrt(columns)]
    if isinstance(leaf, nn.Embedding):
        usual.append(1.0)
    values = _sample(weight)
    deviation = values.std().item()
    return any(abs(deviation / one - 1) < 4 / math.sqrt(2 * values.numel()) for one in usual)


def _bias_is_fresh(leaf: nn.Module) -> bool:
    bias = _values(leaf._parameters.get("bias"))
    if bias is None or not bias.numel():
        return True
    if _constant(bias):
        return True
    weight = leaf._parameters["weight"]
    assert weight is not None
    bound = 1 / math.sqrt(weight[0].numel())  # torch's own start of linear layers
    return bool((bias.abs() <= bound * (1 + 1e-3)).all())
