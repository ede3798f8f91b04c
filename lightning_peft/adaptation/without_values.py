"""Running a model on the ``meta`` device as a processor would run it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["Processor", "RunsOn"]

Processor = Literal["cpu", "cuda"]

_LARGEST = 2**24
"""Elements of the largest mask whose values are followed."""

_ATTENTION = F.scaled_dot_product_attention
_QUESTIONS = (Tensor.__bool__, Tensor.item, Tensor.__int__, Tensor.__float__, Tensor.tolist)


class RunsOn(TorchFunctionMode):
    """Runs on the ``meta`` device what a processor would run, where the former chooses otherwise.

    Attention keeps its matrix on ``meta``, but on a processor only its inputs, its result and the
    sums of the rows. Dropout keeps a mask of numbers on ``meta`` and a CPU, and of truth values on
    a GPU. A model that asks whether anything is masked gets the answer by the values of the inputs:
    whole numbers and truth values that are computed from them are computed twice. Where there are
    no values, the answer is no.

    Args:
        processor: The processor.
        values: The inputs with values, by those without.
    """

    def __init__(self, processor: Processor, values: Mapping[Tensor, Tensor]) -> None:
        super().__init__()
        self.gpu = processor == "cuda"
        self._values: Any = WeakTensorKeyDictionary()
        for without, tensor in values.items():
            if not (tensor.is_meta or tensor.is_floating_point() or tensor.is_complex()):
                self._values[without] = tensor.detach().cpu()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is _ATTENTION:
            return self._attention(*args, **kwargs)
        if self.gpu and func in (F.dropout, torch.dropout):
            return _dropout(*args, **kwargs)
        if func is F.multi_head_attention_forward:  # the functions that it calls do not come here
            F.scaled_dot_product_attention = self._attention
            try:
                return func(*args, **kwargs)
            finally:
                F.scaled_dot_product_attention = _ATTENTION
        if func in _QUESTIONS and args[0].is_meta:
            if args[0] in self._values:
                return func(self._values[args[0]])
            if func is Tensor.__bool__:
                return False
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and result.is_meta:
            self._follow(func, args, kwargs, result)
        return result

    def _follow(self, func: Any, args: Any, kwargs: Any, result: Tensor) -> None:
        """Compute the values of a result, if those of all that it is computed from are known."""
        if result.is_floating_point() or result.is_complex() or result.numel() > _LARGEST:
            return
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not all(leaf in self._values for leaf in given if leaf.is_meta):
            return
        try:
            with torch.no_grad():
                value = func(*tree_map(self._known, args), **tree_map(self._known, kwargs))
        except Exception:  # then there are no values, as everywhere on this device
            return
        if isinstance(value, Tensor) and value.shape == result.shape:
            self._values[result] = value

    def _known(self, argument: Any) -> Any:
        if isinstance(argument, Tensor) and argument.is_meta:
            return self._values[argument]
        if isinstance(argument, torch.device | str) and str(argument) == "meta":
            return torch.device("cpu")
        return argument

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        fused = (
            query.is_meta
            and query.ndim == key.ndim == value.ndim == 4
            and query.shape[-1] == key.shape[-1] == value.shape[-1]
            and (self.gpu or not dropout_p)
            and not (attn_mask is not None and attn_mask.requires_grad)
        )
        if not fused:
            return _ATTENTION(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale,
                enable_gqa=enable_gqa,
            )  # fmt: skip
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(
                attn_mask.logical_not(), -math.inf
            )
        if query.shape[1] != key.shape[1]:
            times = query.shape[1] // key.shape[1]
            key, value = (part.repeat_interleave(times, 1) for part in (key, value))
        operation = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        attended: Tensor = operation(
            query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale
        )[0]
        return attended


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    dropped: Tensor = torch.native_dropout(input, p, True)[0] if training and p else input
    return dropped
