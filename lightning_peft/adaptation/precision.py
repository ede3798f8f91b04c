"""The dtype of what is trained, which a cast of the backbone leaves as it is.

An optimizer's step is often smaller than half a unit in the last place of a value in half
precision; it is lost then, and the value never moves; in float16 Adam divides zero by zero. So an
adapter is kept in float32 beside a backbone in half precision, as by ``autocast_adapter_dtype`` in
``peft``: its forward casts the input to its own dtype and the result back. So are layers that are
trained whole (a head, norms), which ``peft`` leaves in half precision.

But Lightning casts a module after it was adapted (``precision="bf16-true"``), and so do Fabric and
``model.bfloat16()``. Every such cast goes through ``Module._apply``, which is where the dtype is
held here: once, whoever casts and whichever strategy runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from lightning_peft.adaptation.borders import cast_at_border, no_border, tensors_of, whole_layers
from lightning_peft.anatomy.names import parameter_at
from lightning_peft.errors import MethodError, near
from lightning_peft.methods.from_peft.dtypes import follow_base

__all__ = [
    "AdapterDtype",
    "as_dtype",
    "full_default_dtype",
    "in_half_precision",
    "keep_dtype",
    "let_go",
]

AdapterDtype = str | torch.dtype | None
"""A dtype or its name, such as ``"bfloat16"``; ``None`` is float32 or finer."""

_NAMES = ("float32", "bfloat16", "float16", "float64")


def as_dtype(value: AdapterDtype) -> torch.dtype | None:
    """Return the dtype that a setting ``adapter_dtype`` means.

    Raises:
        MethodError: If it is no dtype of floating-point numbers that can be trained.

    >>> as_dtype("bfloat16")
    torch.bfloat16
    """
    found = getattr(torch, value, value) if isinstance(value, str) and value in _NAMES else value
    if found is None or found in [getattr(torch, name) for name in _NAMES]:
        return found  # type: ignore[return-value]
    hint = near(value, _NAMES) if isinstance(value, str) else ""
    raise MethodError(
        f"adapter_dtype: expected one of {', '.join(_NAMES)}, or None for float32 or finer, got "
        f"{value!r}. {hint}".rstrip()
    )


def in_half_precision(dtype: torch.dtype) -> bool:
    """Whether numbers of a dtype are floating-point numbers of fewer bits than float32."""
    return dtype.is_floating_point and dtype.itemsize < torch.float32.itemsize


@contextmanager
def full_default_dtype() -> Iterator[None]:
    """Make new tensors float32 inside, if the default is half precision.

    Lightning makes it so while ``configure_model`` runs, and initial values would be rounded.
    """
    before = torch.get_default_dtype()
    if in_half_precision(before):
        torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def keep_dtype(
    model: nn.Module,
    adapter: Collection[str],
    trained: Collection[str],
    wanted: torch.dtype | None = None,
) -> None:
    """Keep the dtype of what is trained from now on, whatever the model is cast to.

    Args:
        model: The adapted backbone.
        adapter: The names, in it, of the adapter's parameters and buffers.
        trained: The names of the parameters that are trained in place. Layers of which they are all
            parameters are kept, too, if the backbone is cast to half precision.
        wanted: The dtype of the adapter, to which it is cast now. ``None`` is float32 or finer: a
            cast to half precision does not reach the adapter, one to float64 does.
    """
    let_go(model)
    keeper = _KeepsDtype(model, frozenset(adapter), frozenset(trained), wanted)
    model.__dict__[_KEEPER] = keeper
    keeper(lambda tensor: tensor)


def let_go(model: nn.Module) -> None:
    """Let a cast of the model reach all of it again, and give whole layers the backbone's dtype."""
    keeper = model.__dict__.pop(_KEEPER, None)
    if keeper is not None:
        keeper.open()


_KEEPER = "_apply"
"""The attribute of a model that holds what keeps the dtype: the method it stands in for."""

_Cast = Callable[[Tensor], Tensor]


class _KeepsDtype:
    """A stand-in for the method ``_apply`` of an adapted model.

    Parents call it on every child, and ``to``, ``half``, ``cuda`` call it on the model itself. It
    is an object, not a closure, so that the model can be pickled and a deep copy has its own.

    Attributes:
        outside: The dtype that each whole layer would have, if that is half precision.
    """

    def __init__(
        self,
        model: nn.Module,
        adapter: frozenset[str],
        trained: frozenset[str],
        wanted: torch.dtype | None,
    ) -> None:
        self.model = model
        self.adapter = adapter
        self.trained = trained
        self.wanted = wanted
        self.outside: dict[nn.Module, torch.dtype] = {}
        self._layers: tuple[nn.Module, ...] | None = None

    def __call__(self, fn: _Cast, recurse: bool = True) -> nn.Module:
        _register_shards(self.model)
        outside = self._outside_after(fn)
        held = list(self._held(outside))  # alive until the end, so that no other has its identity
        wanted = {id(tensor): dtype for tensor, dtype in held}

        def kept(tensor: Tensor) -> Tensor:
            found = fn(tensor)
            if id(tensor) not in wanted or not found.is_floating_point():
                return found
            dtype = wanted[id(tensor)] or _full(found.dtype)
            return found if found.dtype == dtype else tensor.to(device=found.device, dtype=dtype)

        result = type(self.model)._apply(self.model, kept, recurse)
        self._draw_borders(outside)
        follow_base(self.model)
        return result

    def open(self) -> None:
        """Cast the whole layers to the dtype around them, without borders."""
        for layer, tensor in tensors_of(self.outside):
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(self.outside[layer])
        self._draw_borders({})

    def _outside_after(self, fn: _Cast) -> dict[nn.Module, torch.dtype]:
        """Return the dtype around each whole layer after a cast, where it is half precision."""
        if self._layers is None:
            now = [parameter_at(self.model, name) for name in self.trained]
            if not any(in_half_precision(self._after(fn, p, p.dtype)) for p in now):
                return {}
            self._layers = whole_layers(self.model, self.trained, self.adapter)
        found = {}
        for layer in self._layers:
            like = next(p for p in layer._parameters.values() if p is not None)
            found[layer] = self._after(fn, like, self.outside.get(layer, like.dtype))
        return {layer: dtype for layer, dtype in found.items() if in_half_precision(dtype)}

    @staticmethod
    def _after(fn: _Cast, like: Tensor, dtype: torch.dtype) -> torch.dtype:
        """Return the dtype that a cast makes of one: a move to another device makes none."""
        return fn(torch.empty(0, dtype=dtype, device=like.device)).dtype

    def _held(
        self, outside: dict[nn.Module, torch.dtype]
    ) -> Iterator[tuple[Tensor, torch.dtype | None]]:
        """Yield tensors that keep a dtype (``None`` is any full one), and their gradients."""
        named = chain(
            self.model.named_parameters(remove_duplicate=False),
            self.model.named_buffers(remove_duplicate=False),
        )
        adapter = ((tensor, self.wanted) for name, tensor in named if name in self.adapter)
        whole = ((t, self.wanted) for _, t in tensors_of(outside))
        for tensor, dtype in chain(adapter, whole):
            yield tensor, dtype
            if tensor.grad is not None:
                yield tensor.grad, dtype

    def _draw_borders(self, outside: dict[nn.Module, torch.dtype]) -> None:
        for layer in self.outside.keys() - outside.keys():
            no_border(layer)
        for layer, dtype in outside.items():
            cast_at_border(layer, dtype)
        self.outside = dict(outside)


def _full(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if in_half_precision(dtype) else dtype


def _register_shards(model: nn.Module) -> None:
    """Register the parameters that FSDP2 casts, which are the shards, not what they are part of."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    for part in model.modules() if fsdp is not None else ():
        if isinstance(part, fsdp.FSDPModule):
            part.reshard()
