"""Formulas for the floating-point operations of single operations.

Those of ``torch.utils.flop_counter``, except for operations that it counts wrongly (the gradients
of the weights of grouped convolutions, as if there was one group) or not at all (recurrent layers
in one kernel, products with vectors, grouped, packed and trilinear products, fused encoder
layers). One multiply-add is two; elementwise work does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

__all__ = ["formula_of"]

aten = torch.ops.aten

Formula = Callable[..., int]


def formula_of(operation: Any) -> Formula | None:
    """Return the formula of an operation; ``None`` if its work does not count.

    Args:
        operation: The operation, without its overload.

    Returns:
        A function of the operation's arguments and of ``out_val``, its result.
    """
    return _OURS.get(operation) or flop_registry.get(operation)


def _convolution_backward(
    grad_output: Tensor,
    inputs: Tensor,
    weight: Tensor,
    bias_sizes: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    output_mask: Sequence[bool],
    **kwargs: Any,
) -> int:
    """Each gradient has a product for each of the forward's: a weight meets each place once."""
    places = inputs if transposed else grad_output
    forward = 2 * places.shape[0] * prod(places.shape[2:]) * weight.numel()
    return forward * (bool(output_mask[0]) + bool(output_mask[1]))


def _lstm_forward(inputs: Tensor, ih: Tensor, hh: Tensor, *args: Any, **kwargs: Any) -> int:
    """Each element of a sequence meets each weight once (oneDNN: one layer and direction)."""
    return 2 * prod(inputs.shape[:-1]) * (ih.numel() + hh.numel())


def _lstm_backward(*args: Any, **kwargs: Any) -> int:
    """The kernel computes the gradients of the inputs and of the weights, always both."""
    return 2 * _lstm_forward(*args)


def _cudnn_forward(inputs: Tensor, weights: Sequence[Tensor], *args: Any, **kwargs: Any) -> int:
    """Each element of a sequence meets each weight of every layer and direction once."""
    return 2 * prod(inputs.shape[:-1]) * sum(w.numel() for w in weights if w.ndim == 2)


def _cudnn_backward(inputs: Tensor, weights: Sequence[Tensor], *args: Any, **kwargs: Any) -> int:
    """The gradients of the inputs, and of the weights where they are asked for."""
    output_mask = args[-1]
    return _cudnn_forward(inputs, weights) * (1 + bool(output_mask[3]))


def _product_with_vector(matrix: Tensor, *args: Any, **kwargs: Any) -> int:
    return 2 * matrix.numel()


def _added_product_with_vector(added: Tensor, matrix: Tensor, *args: Any, **kwargs: Any) -> int:
    return 2 * matrix.numel()


def _grouped_product(a: Tensor, b: Tensor, *args: Any, **kwargs: Any) -> int:
    """Return the operations of a product in groups.

    Each side is a matrix for each group, or one that is divided among them: by rows, by columns, or
    both along the dimension that is summed.
    """
    groups = a.shape[0] if a.ndim == b.ndim == 3 else 1
    return 2 * groups * a.shape[-2] * a.shape[-1] * b.shape[-1]


def _summed_products(added: Tensor, a: Tensor, b: Tensor, *args: Any, **kwargs: Any) -> int:
    return 2 * a.numel() * b.shape[-1]


def _matrix_product(a: Tensor, *args: Any, out_val: Tensor, **kwargs: Any) -> int:
    """Return the operations of a product with a matrix that may be packed."""
    return 2 * a.numel() * out_val.shape[-1]


def _trilinear(
    a: Tensor,
    b: Tensor,
    c: Tensor,
    expand_a: Sequence[int],
    expand_b: Sequence[int],
    expand_c: Sequence[int],
    *args: Any,
    **kwargs: Any,
) -> int:
    """Three numbers are multiplied and added for each element of what all are expanded to."""
    sizes = [1] * (a.ndim + len(expand_a))
    for tensor, expanded in ((a, expand_a), (b, expand_b), (c, expand_c)):
        own = iter(tensor.shape)
        here = [1 if place in expanded else next(own) for place in range(len(sizes))]
        sizes = [max(pair) for pair in zip(sizes, here, strict=True)]
    return 3 * prod(sizes)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    width: int,
    heads: int,
    qkv: Tensor,
    *args: Any,
    **kwargs: Any,
) -> int:
    """Return the operations of an attention layer that runs in one operation."""
    out: Tensor = args[1]
    return sum(
        2 * length * (qkv.numel() + out.numel() + 2 * length * width) for length in _lengths(query)
    )


def _encoder_layer(
    src: Tensor,
    width: int,
    heads: int,
    qkv: Tensor,
    bias: Tensor,
    out: Tensor,
    *args: Any,
    **kwargs: Any,
) -> int:
    """Return the operations of an encoder layer that runs in one: attention, and two products."""
    feed_forward = args[8].numel() + args[10].numel()
    attention = _attention(src, src, src, width, heads, qkv, bias, out)
    return attention + 2 * sum(_lengths(src)) * feed_forward


def _lengths(sequences: Tensor) -> list[int]:
    """Return the lengths of sequences, which differ in a nested tensor."""
    if sequences.is_nested:
        return [len(sequence) for sequence in sequences.unbind()]
    return [sequences.shape[1]] * sequences.shape[0]


def _named(name: str) -> Any:
    """Return an operation; ``None`` where this release of torch has none of the name."""
    return getattr(aten, name, None)


_OURS: dict[Any, Formula] = {
    aten.convolution_backward: _convolution_backward,
    _named("mkldnn_rnn_layer"): _lstm_forward,
    _named("mkldnn_rnn_layer_backward"): _lstm_backward,
    _named("_cudnn_rnn"): _cudnn_forward,
    _named("_cudnn_rnn_backward"): _cudnn_backward,
    _named("miopen_rnn"): _cudnn_forward,
    _named("miopen_rnn_backward"): _cudnn_backward,
    aten.mv: _product_with_vector,
    aten.dot: _product_with_vector,
    aten.vdot: _product_with_vector,
    aten.addmv: _added_product_with_vector,
    aten.addbmm: _summed_products,
    aten._trilinear: _trilinear,
    _named("_addmm_activation"): _summed_products,
    _named("_int_mm"): _matrix_product,
    _named("_scaled_mm_v2"): _matrix_product,
    _named("_weight_int8pack_mm"): _matrix_product,
    _named("_weight_int4pack_mm"): _matrix_product,
    _named("_weight_int4pack_mm_for_cpu"): _matrix_product,
    _named("_dyn_quant_matmul_4bit"): _matrix_product,
    _named("mkldnn_linear"): _matrix_product,
    _named("_grouped_mm"): _grouped_product,
    _named("_scaled_grouped_mm"): _grouped_product,
    _named("_scaled_grouped_mm_v2"): _grouped_product,
    _named("_native_multi_head_attention"): _attention,
    _named("_transformer_encoder_layer_fwd"): _encoder_layer,
}
_OURS.pop(None, None)
