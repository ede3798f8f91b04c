"""Merging into a layer whose weight is held as codes: through its own quantiser, or made dense.

The sum is made of the weight that the codes stand for. Codes made of it again may lose what was
added: so the layer's outputs are compared before and after, and a sum that is lost is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_peft.anatomy.forward import in_evaluation_mode
from lightning_peft.anatomy.quantised import Scheme, scheme_of
from lightning_peft.methods.codes import BESIDE, DENSE, probe
from lightning_peft.methods.finite import lost, refuse_not_finite

__all__ = [
    "Restorer",
    "become_dense",
    "linear_function_of",
    "measured",
    "weight_in_numbers",
    "write_codes",
]

_LINEAR = 1e-3
"""The largest relative difference between a linear function and its matrix."""


class Restorer:
    """What puts a quantised layer back as it is now: its class, codes, and state beside them.

    Args:
        base: The quantised layer.
    """

    def __init__(self, base: nn.Module) -> None:
        self.base = base
        self.kind = type(base)
        self.attributes = {
            key: copy.copy(value) if key in ("_parameters", "_buffers", "state") else value
            for key, value in base.__dict__.items()
        }
        self.tensors = [
            # a tensor that dequantises itself is never written in place, and may not be copied
            (tensor, tensor.data if tensor.is_floating_point() else tensor.data.clone())
            for tensor in (*base._parameters.values(), *base._buffers.values())
            if tensor is not None
        ]

    def __call__(self) -> None:
        """Put it back."""
        self.base.__class__ = self.kind
        self.base.__dict__.clear()
        self.base.__dict__.update(self.attributes)
        for tensor, data in self.tensors:
            if tensor.data is not data:
                tensor.data = data


def measured(
    layer: nn.Module,
    base: nn.Module,
    bare: Callable[[], Tensor],
    fold: Callable[[], None],
    what: str,
) -> float:
    """Fold an adapter into codes, and measure it; on any error the base is as it was.

    Args:
        layer: What computes with the adapter: the base with its hooks, or the layer around it.
        base: The quantised layer.
        bare: Computes the output of :func:`probe` without the adapter.
        fold: Writes the codes, after which ``layer`` computes without the adapter.
        what: The base's class and name, for the error.

    Returns:
        The largest change of the outputs for random inputs, relative to the largest.

    Raises:
        ValueError: If making codes of the sum changes more than the adapter does, or is impossible.
    """
    known = scheme_of(base) is not None
    way_out = DENSE if known else BESIDE
    wanted = probe(layer, base)
    effect = (wanted - bare()).norm()
    if not effect:  # nothing to fold, and codes made again need not be the same
        return 0.0
    try:
        fold()
    except Exception as error:  # a library may raise anything
        reason = str(error) or type(error).__name__
        raise ValueError(
            f"expected codes that {'its library' if known else 'peft'} can merge into, got {what} "
            f"({reason}). {way_out}"
        ) from error
    change = probe(layer, base) - wanted
    if not change.norm() < effect:
        raise ValueError(
            f"expected codes that can hold the adapter, got {what}: making codes of the sum "
            f"changes its outputs by {float(change.norm()):.2g}, the adapter itself by "
            f"{float(effect):.2g}. {way_out}"
        )
    return float(change.abs().max() / wanted.abs().max().clamp_min(1e-30))


def write_codes(base: nn.Module, scheme: Scheme, values: Mapping[str, Tensor]) -> None:
    """Write a weight as codes, and a bias as numbers.

    Args:
        base: The quantised layer.
        scheme: How it holds its weight.
        values: ``"weight"``, and ``"bias"`` if that changes too.
    """
    for name, value in values.items():
        if name == "weight":
            scheme.write(base, value)
        else:
            parameter = base._parameters[name]
            assert parameter is not None
            parameter.data = value.to(parameter)


@torch.no_grad()
def become_dense(base: Any, values: Mapping[str, Tensor], dtype: torch.dtype) -> float:
    """Make a plain linear layer of a quantised one, in its place.

    Args:
        base: The quantised layer; it has another class afterwards, and keeps its hooks.
        values: Its ``"weight"``, and its ``"bias"`` if that changes, in float32.
        dtype: The dtype of the layer.

    Returns:
        The largest change that rounding made, relative to the largest weight.
    """
    device = next(base.parameters()).device
    bias = values.get("bias", base._parameters.get("bias"))
    plain = nn.Linear(base.in_features, base.out_features, bias is not None, "meta", dtype)
    plain.weight = nn.Parameter(values["weight"].to(device, dtype), requires_grad=False)
    if bias is not None:
        plain.bias = nn.Parameter(bias.detach().to(device, dtype), requires_grad=False)
    kept = {
        key: value
        for key, value in base.__dict__.items()
        if key in ("training", "_modules") or (key.endswith("_hooks") and "state_dict" not in key)
    }
    base.__class__ = nn.Linear
    base.__dict__.clear()
    base.__dict__.update({**plain.__dict__, **kept})
    return 0.0 if base.weight.is_meta else lost(values["weight"], base.weight)


@torch.no_grad()
def linear_function_of(layer: Any, base: Any, scheme: Scheme, what: str) -> dict[str, Tensor]:
    """Return the matrix and the bias by which a layer of ``peft`` is replaced, in float32.

    It runs over the identity, on the weight that the codes stand for: so it is what the layer
    computes, whatever the tuner, and needs no merge of the tuner's own.

    Args:
        layer: The layer.
        base: The quantised layer in it; put back afterwards.
        scheme: How it holds its weight.
        what: The layer's name, for the error.

    Raises:
        ValueError: If the layer is not a linear function, or gives the base a bias that it has not.
    """
    if layer._modules.get("base_layer") is not base:
        raise ValueError(f"expected one adapter of peft at {what}, got several. {BESIDE}")
    weight = scheme.dequantised(base).float()
    plain = nn.Linear(base.in_features, base.out_features, device=weight.device)
    plain.weight = nn.Parameter(weight, requires_grad=False)
    plain.bias.requires_grad_(False)
    own = base._parameters.get("bias")
    plain.bias.copy_(torch.zeros_like(plain.bias) if own is None else own)
    eye = torch.eye(base.in_features, device=weight.device)
    random = torch.randn(8, base.in_features, generator=torch.Generator().manual_seed(0))
    layer._modules["base_layer"] = plain
    reader = layer.__dict__.get("quantization_backend")  # by which some tuners read codes
    if reader is not None:
        layer.quantization_backend = None
    try:
        with in_evaluation_mode(layer):
            wanted, bias = layer(random.to(eye)), layer(torch.zeros_like(eye[:1]))[0]
            plain.bias.zero_()  # so that the matrix has no rounding of the bias in it
            matrix = (layer(eye) - layer(torch.zeros_like(eye[:1]))).T.contiguous()
    finally:
        layer._modules["base_layer"] = base
        if reader is not None:
            layer.quantization_backend = reader
    difference = (nn.functional.linear(random.to(eye), matrix, bias) - wanted).norm()
    if not difference <= _LINEAR * wanted.norm():
        refuse_not_finite({"weight": matrix}, f"the merged weights of {what}")
        raise ValueError(f"its adapter at {what} is not linear, so no weight can replace it")
    if own is None and bias.any():
        raise ValueError(f"expected a bias in {what} to take that of the adapter, got none")
    found = {"weight": matrix} if own is None else {"weight": matrix, "bias": bias}
    refuse_not_finite(found, f"the merged weights of {what}")
    return found


@contextmanager
def weight_in_numbers(base: nn.Module) -> Iterator[None]:
    """Let a quantised layer have the weight that its codes stand for, inside the context."""
    scheme = scheme_of(base)
    assert scheme is not None
    numbers = nn.Parameter(scheme.dequantised(base).float(), requires_grad=False)
    before = dict(base._parameters)
    base._parameters["weight"] = numbers
    try:
        yield
    finally:
        base._parameters.clear()
        base._parameters.update(before)
