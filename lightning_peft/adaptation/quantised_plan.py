"""Quantised layers on the ``meta`` device, where a backbone is planned without values."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_peft.adaptation.dense import dtype_around
from lightning_peft.anatomy.quantised import EightBit, quantised_layers
from lightning_peft.methods.merging_codes import become_dense

__all__ = ["dense_on_meta", "quantised_on_meta", "runs_without_values"]


def quantised_on_meta(model: nn.Module, memo: dict[int, Any]) -> None:
    """Note, for a deep copy, what the tensors of quantised layers are on the ``meta`` device.

    Args:
        model: The model; not changed.
        memo: The ``memo`` of the deep copy; it is added to.
    """
    for _, layer, scheme in quantised_layers(model):
        held = [*scheme.state(layer).values()]
        for holder in (layer._parameters.get("weight"), layer.__dict__.get("state")):
            held += (
                [value for value in vars(holder).values() if isinstance(value, Tensor)]
                if (hasattr(holder, "__dict__"))
                else []
            )
        for tensor in held:
            if type(tensor) is Tensor and tensor.ndim:  # bitsandbytes reads single numbers
                memo.setdefault(id(tensor), torch.empty_like(tensor, device="meta"))
        for parameter in layer._parameters.values():
            kind: Any = type(parameter)
            if parameter is not None and kind.__module__.startswith("torchao."):
                memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), False)
            if parameter is None or not kind.__module__.startswith("bitsandbytes."):
                continue
            empty = torch.empty_like(parameter.data.as_subclass(Tensor), device="meta")
            twin: Any = Tensor._make_subclass(kind, empty, False)
            memo[id(parameter)] = twin
            told = {key: value for key, value in vars(parameter).items() if key != "module"}
            twin.__dict__.update(copy.deepcopy(told, memo), module=None)


def dense_on_meta(model: nn.Module) -> nn.Module:
    """Put dense layers in the place of the quantised ones of a model on the ``meta`` device."""
    dtype = dtype_around(model)
    for _, layer, _ in list(quantised_layers(model)):
        sides: Any = (layer.out_features, layer.in_features)
        become_dense(layer, {"weight": torch.empty(sides, dtype=dtype, device="meta")}, dtype)
    return model


def runs_without_values(model: nn.Module) -> None:
    """Let the quantised layers of a model on the ``meta`` device run as their libraries run them.

    The weight exists in the dtype of the inputs while a product is computed, forward and backward.
    bitsandbytes keeps the inputs of int8 layers for the backward pass, although the weight is
    frozen.

    Args:
        model: The model, which is thrown away afterwards.
    """
    for _, layer, scheme in quantised_layers(model):
        keeps = isinstance(scheme, EightBit)
        layer.__dict__["forward"] = partial(_run, layer, keeps)


def _run(layer: Any, keeps: bool, x: Tensor) -> Tensor:
    output: Tensor = _Product.apply(x, layer.out_features, keeps)
    bias = layer._parameters.get("bias")
    return output if bias is None else output + bias.to(output.dtype)


class _Product(torch.autograd.Function):
    """The product with a weight that is made of its codes when it is needed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, outputs: int, keeps: bool) -> Tensor:
        ctx.sides, ctx.dtype = (outputs, x.shape[-1]), x.dtype
        if keeps:
            ctx.save_for_backward(x)
        return nn.functional.linear(x, torch.empty(ctx.sides, dtype=x.dtype, device=x.device))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        weight = torch.empty(ctx.sides, dtype=ctx.dtype, device=gradient.device)
        return gradient.to(ctx.dtype) @ weight, None, None
