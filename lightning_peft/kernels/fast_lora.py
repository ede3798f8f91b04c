"""Giving ``peft``'s LoRA layers the fast forward, in place."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lightning_peft.kernels.low_rank import low_rank_linear

__all__ = ["Acceleration", "accelerate"]


@dataclass(frozen=True)
class Acceleration:
    """Which layers are fast, and why others are not.

    Attributes:
        fast: Names of the layers.
        plain: For each other LoRA layer, the reason.
    """

    fast: tuple[str, ...]
    plain: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{len(self.fast)} LoRA layers with the fast forward"]
        for reason, count in Counter(self.plain.values()).items():
            lines.append(f"{count} as peft has them: {reason}")
        return "; ".join(lines)


def accelerate(model: nn.Module) -> Acceleration:
    """Let ``peft``'s LoRA layers compute forward and backward with fewer passes over memory.

    Works on any model that ``peft`` has put LoRA into, adapted by this package or not. Outputs and
    gradients are those of ``peft`` up to rounding. Whenever something is going on that the fast
    forward does not know (several active adapters, mixed batches, a merged or disabled adapter,
    dropout in training, hooks on the base layer), a layer uses ``peft``'s own; nothing has to be
    switched. Doing so twice is as good as once, and copies, pickles and state dicts are as before.

    Args:
        model: A model with LoRA layers, changed in place: their class becomes a subclass of theirs.

    Returns:
        What was done.
    """
    from peft.tuners.lora import LoraLayer

    fast, plain = [], {}
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        reason = _reason(layer)
        if reason is None:
            layer.__class__ = fast_linear()
            fast.append(name)
        else:
            plain[name] = reason
    return Acceleration(tuple(fast), plain)


def _reason(layer: Any) -> str | None:
    """Say why a layer keeps ``peft``'s forward, or ``None`` where it can be fast."""
    from peft.tuners.lora.layer import Linear

    if type(layer) is fast_linear():
        return None
    base = layer.get_base_layer()
    if type(layer) is not Linear:
        return f"{type(layer).__name__} is another kind of layer"
    if type(base) is not nn.Linear:
        return f"its base is {type(base).__name__}, not nn.Linear"
    if not base.weight.is_floating_point():
        return "its base is quantised"
    if layer.lora_variant:
        return f"it is a variant of LoRA ({', '.join(sorted(set(layer.lora_variant)))})"
    if any(layer.lora_bias.values()):
        return "its update has a bias"
    return None


def _active(layer: Any) -> str | None:
    """Name the one adapter that the fast forward may use now, if it may be used."""
    if layer.disable_adapters or layer.merged_adapters:
        return None
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(active) != 1:
        return None
    name: str = active[0]
    if name in layer.lora_variant or layer.lora_bias.get(name, False):
        return None
    dropout = layer.lora_dropout[name]
    if layer.training and not isinstance(dropout, nn.Identity) and dropout.p:
        return None
    base = layer.base_layer
    if base._forward_hooks or base._forward_pre_hooks or base._backward_hooks:
        return None
    if any(parameter.requires_grad for parameter in base.parameters()):  # such as its bias
        return None
    return name


def __getattr__(name: str) -> Any:
    # for pickles, which name the class; peft takes seconds to import, and only its users pay
    if name == "FastLinear":
        return fast_linear()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def fast_linear() -> type:
    """Give the class of the fast layers, made when ``peft`` is there."""
    from peft.tuners.lora.layer import Linear

    class FastLinear(Linear):
        """``peft``'s LoRA on a linear layer, with the fast forward where it applies."""

        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            """See :func:`low_rank_linear`; otherwise the forward of ``peft``."""
            name = None if args or kwargs else _active(self)
            base = self.base_layer
            if name is None:
                result: Tensor = super().forward(x, *args, **kwargs)
                return result
            a, b = self.lora_A[name].weight, self.lora_B[name].weight
            return low_rank_linear(x, base.weight, base.bias, a, b, self.scaling[name])

    FastLinear.__module__ = __name__
    FastLinear.__qualname__ = "FastLinear"
    return FastLinear
