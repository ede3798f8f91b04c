"""A limit on allocations while a model is changed according to a file.

A config of a few bytes may ask for a rank of a billion. The limit checks each operation before it
runs, so that the memory is never allocated.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from lightning_peft.errors import AdapterFileError

__all__ = ["AllocationLimit"]

# An initial value computed from a weight (a singular value decomposition) makes several tensors of
# its size, and a projection that is drawn from a seed is in no file: the limit is a generous one.
_TIMES = 16
_ELEMENTS = 1 << 24
_OPERATIONS = 10_000
_OPERATIONS_A_MODULE = 500


class AllocationLimit(TorchDispatchMode):
    """Refuse operations that allocate more than a model and a file together can account for.

    Args:
        model: The backbone.
        held: The number of elements in the file.
        where: The file's name, for the error.

    Raises:
        AdapterFileError: Inside the context, at the first operation beyond the limit.
    """

    def __init__(self, model: nn.Module, held: int, where: str) -> None:
        super().__init__()
        own = sum(t.numel() for t in (*model.parameters(), *model.buffers()))
        self._elements = _TIMES * (own + held) + _ELEMENTS
        self._operations = _OPERATIONS + _OPERATIONS_A_MODULE * sum(1 for _ in model.modules())
        self._held = held
        self._where = where

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Count an operation, and run it if it is within the limit."""
        kwargs = kwargs or {}
        self._operations -= 1
        if _makes_something(func):
            self._elements -= _elements_made(func, args, kwargs)
        if self._elements < 0 or self._operations < 0:
            raise AdapterFileError(
                f"{self._where}: expected a config that fits the {self._held:,} elements in the "
                "file, got one that asks for an adapter far larger than them and the backbone. "
                "It was not built."
            )
        return func(*args, **kwargs)


@functools.cache
def _makes_something(func: Any) -> bool:
    """Whether an operation's result takes new memory: it is not a view or a change in place."""
    return all(returned.alias_info is None for returned in func._schema.returns)


def _elements_made(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Count the elements of an operation's result without computing it."""
    # called by the hundred for parameters and samples of them: no need to try these out
    if func is torch.ops.aten.empty.memory_format:
        return math.prod(args[0])
    if func is torch.ops.aten.index.Tensor and args[0].dim() == len(args[1]) == 1:
        return int(args[1][0].numel())
    given, named = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, dict(kwargs)))
    known = {argument.name for argument in func._schema.arguments}
    if "device" in known:
        named.update(device=torch.device("meta"))
        named.pop("pin_memory", None)
    if "generator" in known and "generator" in named:
        named["generator"] = None
    try:
        made = func(*given, **named)
    except (NotImplementedError, RuntimeError):
        # a result whose shape depends on values (nonzero) has no more elements than the input
        return sum(tensor.numel() for tensor in tree_leaves((args, kwargs)) if _is_tensor(tensor))
    return sum(tensor.numel() for tensor in tree_leaves(made) if _is_tensor(tensor))


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)
