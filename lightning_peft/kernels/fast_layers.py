"""Subclasses of ``peft``'s LoRA layers that use the fast forward where it applies."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from lightning_peft.kernels.convolution import Geometry, low_rank_conv
from lightning_peft.kernels.low_rank import low_rank_linear
from lightning_peft.kernels.rebuild import Memory, Rebuilds

__all__ = ["MEMORY", "REBUILDS", "fast_classes", "memory_of"]

SMALL = 200_000
"""Number of values that a linear layer reads and writes, below which ``peft``'s forward is faster.

At about this size, an autograd function in Python costs as much time on a CPU as it saves in passes
over memory: ``benchmarks/small_layers.py``.
"""

SMALL_CONVOLUTION = 400_000
"""The same for a convolution, whose kernels gain less: ``benchmarks/never_slower.py``."""

HEAVY = 1.5
"""Values that a convolution reads and writes for each of its weights, below which it is small too.

The weights are read and written for every ``W + s B A``, however few places there are.
"""

_PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""The classes of ``A`` and ``B`` that are not wrapped, sharded or parametrised."""

MEMORY = "_lightning_peft_memory"
"""The attribute of a layer that holds its setting of ``memory``."""

REBUILDS = "_lightning_peft_rebuilds"
"""The attribute of a layer that holds which tensors it may recompute itself."""


def memory_of(layer: nn.Module) -> Memory:
    """Return the setting of ``memory`` of a layer."""
    memory: Memory = layer.__dict__.get(MEMORY, "default")
    return memory


def _rebuilds(layer: nn.Module) -> Rebuilds:
    """Return which tensors a layer may recompute."""
    rebuilds: Rebuilds = layer.__dict__.get(REBUILDS, "default")
    return rebuilds


def _active(layer: Any, downs: Any) -> str | None:
    """Return the adapter for which the fast forward may be used now, or None."""
    if layer.disable_adapters or layer.merged_adapters:
        return None
    if _is_transformed():
        return None
    active = [name for name in layer.active_adapters if name in downs]
    if len(active) != 1:
        return None
    name: str = active[0]
    if name in layer.lora_variant or layer.lora_bias.get(name, False):
        return None
    parts = _parts(layer, name)
    if parts is None or any(_is_hooked(part) for part in parts):
        return None
    base = layer.base_layer
    if any(parameter.requires_grad for parameter in base.parameters()):  # such as its bias
        return None
    return name


def _is_transformed() -> bool:
    """Whether a transform or a trace is running that does not support Python autograd functions."""
    if torch._C._are_functorch_transforms_active():  # such as per-sample gradients
        return True
    if torch.compiler.is_compiling():
        return False
    return forward_ad._current_level >= 0 or torch.jit.is_tracing()


def _parts(layer: Any, name: str) -> tuple[nn.Module, ...] | None:
    """Return the modules that the fast forward replaces; ``None`` if one may do something else."""
    if name not in layer.lora_A:  # an embedding, whose matrices are not modules
        return (layer.base_layer,)
    down, up, dropout = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
    if type(down) not in _PLAIN or type(up) not in _PLAIN:  # such as one that is sharded
        return None
    if type(dropout) not in (nn.Identity, nn.Dropout):
        return None
    return layer.base_layer, down, up, dropout


def _is_hooked(part: nn.Module) -> bool:
    return bool(
        part._forward_hooks
        or part._forward_pre_hooks
        or part._backward_hooks
        or part._backward_pre_hooks
    )


def _is_small(layer: Any, x: Tensor) -> bool:
    """Whether the input of a linear layer is so small that the plain forward is as fast."""
    if not _may_be_small(layer, x):
        return False
    return x.numel() + x.numel() // x.shape[-1] * layer.out_features < SMALL


def _is_small_convolution(layer: Any, x: Tensor) -> bool:
    """The same for a convolution."""
    if not _may_be_small(layer, x):
        return False
    base = layer.base_layer
    written = x.numel() // x.shape[1] // math.prod(base.stride) * base.out_channels
    return x.numel() + written < max(SMALL_CONVOLUTION, HEAVY * base.weight.numel())


def _may_be_small(layer: Any, x: Tensor) -> bool:
    return (
        x.is_cpu
        and not torch.compiler.is_compiling()
        and not torch._C._is_tracing()  # a trace would record the size
        and _rebuilds(layer) in ("default", "high")
    )


def _dropout(layer: Any, name: str) -> float:
    """Return the probability with which an entry of an adapter's input is dropped now."""
    dropout = layer.lora_dropout[name]
    return dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0


def __getattr__(name: str) -> Any:
    # pickles name the class; importing peft takes seconds, which only its users should pay
    for fast in fast_classes().values() if name.startswith("Fast") else ():
        if fast.__name__ == name:
            return fast
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def fast_classes() -> dict[type, type]:
    """Return the fast class of each class of ``peft`` that has one; made when ``peft`` is there."""
    from peft.tuners.lora import layer as lora

    class FastLinear(lora.Linear):
        """LoRA on a linear layer: see :func:`low_rank_linear`."""

        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            """The fast forward; otherwise that of ``peft``."""
            few = bool(args or kwargs) or _is_small(self, x)
            name = None if few else _active(self, self.lora_A)
            if name is None:
                result: Tensor = super().forward(x, *args, **kwargs)
                return result
            base = self.base_layer
            return low_rank_linear(
                x,
                base.weight if isinstance(base, nn.Linear) else base.weight.T,
                base.bias,
                self.lora_A[name].weight,
                self.lora_B[name].weight,
                self.scaling[name],
                dropout=_dropout(self, name),
                memory=_rebuilds(self),
                training=self.training,
            )

    class FastEmbedding(lora.Embedding):
        """LoRA on an embedding: the update is added into the rows that were looked up."""

        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            """The fast forward; otherwise that of ``peft``."""
            name = None if args or kwargs else _active(self, self.lora_embedding_A)
            if name is None or self.input_fns.get(name) or self.output_fns.get(name):
                result: Tensor = super().forward(x, *args, **kwargs)
                return result
            found: Tensor = self.base_layer(x)
            down, up = self.lora_embedding_A[name].T, self.lora_embedding_B[name]
            hidden = self._embed(x, down).to(found.dtype).reshape(-1, down.shape[-1])
            flat = found.view(-1, found.shape[-1])
            return flat.addmm(hidden, up.T.to(found.dtype), alpha=self.scaling[name]).view_as(found)

    def convolution(of_peft: type) -> type:
        class FastConv(of_peft):
            """LoRA on a convolution: see :func:`low_rank_conv`."""

            def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
                """The fast forward; otherwise that of ``peft``."""
                base = self.base_layer
                unbatched = x.dim() != base.weight.dim()
                few = bool(args or kwargs) or unbatched or _is_small_convolution(self, x)
                name = None if few else _active(self, self.lora_A)
                if name is None or _dropout(self, name):
                    result: Tensor = super().forward(x, *args, **kwargs)
                    return result
                return low_rank_conv(
                    x,
                    base.weight,
                    base.bias,
                    self.lora_A[name].weight,
                    self.lora_B[name].weight,
                    self.scaling[name],
                    Geometry(base.stride, base.padding, base.dilation),
                    memory=_rebuilds(self),
                )

        return FastConv

    made: dict[type, type] = {lora.Linear: FastLinear, lora.Embedding: FastEmbedding}
    made.update({cls: convolution(cls) for cls in (lora.Conv1d, lora.Conv2d, lora.Conv3d)})
    for of_peft, fast in made.items():
        fast.__module__ = __name__
        fast.__name__ = fast.__qualname__ = f"Fast{of_peft.__name__}"
    return made
