"""Giving ``peft``'s LoRA layers the fast forward, in place."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import nn

from lightning_peft.errors import MethodError
from lightning_peft.kernels.fast_layers import MEMORY, REBUILDS, fast_classes, memory_of
from lightning_peft.kernels.rebuild import Memory

__all__ = ["Acceleration", "accelerate", "acceleration_of", "holds_lora", "memory_problem"]


@dataclass(frozen=True)
class Acceleration:
    """Which layers are fast, and why others are not.

    Attributes:
        fast: Names of the layers.
        plain: For each other LoRA layer, the reason.
        memory: What the fast layers may make again in the backward pass; ``"mixed"`` where parts of
            the model were accelerated in different ways.
    """

    fast: tuple[str, ...]
    plain: dict[str, str]
    memory: Memory | Literal["mixed"] = "default"

    def to_dict(self) -> dict[str, Any]:
        """Give it as plain JSON types: counts, and how many layers each reason keeps."""
        reasons = dict(Counter(self.plain.values()))
        return {"fast": len(self.fast), "plain": reasons, "memory": self.memory}

    def __str__(self) -> str:
        what = {
            "default": "",
            "low": ", low in memory",
            "lowest": ", lowest in memory",
            "high": ", nothing made again",
            "mixed": ", mixed settings of memory",
        }
        lines = [f"{len(self.fast)} LoRA layers with the fast forward{what[self.memory]}"]
        for reason, count in Counter(self.plain.values()).items():
            lines.append(f"{count} as peft has them: {reason}")
        return "; ".join(lines)


def accelerate(model: nn.Module, memory: Memory = "default") -> Acceleration:
    """Let ``peft``'s LoRA layers compute forward and backward with fewer passes over memory.

    Works on any model that ``peft`` has put LoRA into, adapted by this package or not: linear
    layers, convolutions and embeddings. Outputs and gradients are those of ``peft`` up to rounding.
    Whenever something is going on that the fast forward does not know (several active adapters,
    mixed batches, a merged or disabled adapter, hooks on the base layer), a layer uses ``peft``'s
    own; nothing has to be switched. Doing so twice is as good as once, and copies, pickles and
    state dicts are as before.

    Args:
        model: A model with LoRA layers, changed in place: their class becomes a subclass of theirs.
        memory: What a layer makes again in the backward pass from what the graph keeps in any case:
            ``"default"`` the output of an activation function (GELU, SiLU, a gate) that feeds it;
            ``"low"`` that of a layer norm as well, and in the first quarter of the layers what is
            below; ``"lowest"`` in all of them also what an activation function is given, where that
            comes from an adapted layer (an MLP's first), at the price of one more of its products;
            ``"high"`` nothing.

    Returns:
        What was done.

    Raises:
        MethodError: If ``memory`` is none of these.
    """
    from peft.tuners.lora import LoraLayer

    problem = memory_problem(memory)
    if problem is not None:
        raise MethodError(problem)
    fast: dict[str, LoraLayer] = {}
    plain: dict[str, str] = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        reason = _reason(layer)
        if reason is None:
            layer.__class__ = fast_classes().get(type(layer), type(layer))
            fast[name] = layer
        else:
            plain[name] = reason
    for number, layer in enumerate(fast.values()):
        # the share of the products that "low" makes again is a compromise: see the benchmarks
        low = "lowest" if number < len(fast) / 4 else "low"
        layer.__dict__[MEMORY] = memory
        layer.__dict__[REBUILDS] = low if memory == "low" else memory
    return Acceleration(tuple(fast), plain, memory)


def acceleration_of(model: nn.Module) -> Acceleration | None:
    """Say which LoRA layers of a model are fast now, without changing one.

    Args:
        model: Any model.

    Returns:
        What :func:`accelerate` came to, or ``None`` for a model without LoRA layers.
    """
    if not holds_lora(model.modules()):
        return None
    from peft.tuners.lora import LoraLayer

    layers = {name: part for name, part in model.named_modules() if isinstance(part, LoraLayer)}
    quick = tuple(fast_classes().values())
    fast = tuple(name for name, layer in layers.items() if isinstance(layer, quick))
    plain = {
        name: _reason(layer) or "nobody accelerated it"
        for name, layer in layers.items()
        if name not in fast
    }
    settings = {memory_of(layers[name]) for name in fast} or {"default"}
    return Acceleration(fast, plain, settings.pop() if len(settings) == 1 else "mixed")


def holds_lora(modules: Iterable[nn.Module]) -> bool:
    """Say whether ``peft``'s LoRA, or a layer derived from it, is among modules."""
    if "peft.tuners.lora" not in sys.modules:  # then nobody has made such a layer
        return False
    from peft.tuners.lora import LoraLayer

    return any(isinstance(module, LoraLayer) for module in modules)


def memory_problem(memory: Any) -> str | None:
    """Say what is wrong with a value of ``memory``, if anything."""
    if isinstance(memory, str) and memory in get_args(Memory):
        return None
    return f"memory: expected 'default', 'low', 'lowest' or 'high', got {memory!r}."


def _reason(layer: Any) -> str | None:
    """Say why a layer keeps ``peft``'s forward, or ``None`` where it can be fast."""
    base = layer.get_base_layer()
    fast = fast_classes()
    if type(layer) not in fast and type(layer) not in fast.values():
        return f"{type(layer).__name__} is another kind of layer"
    bases = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    if type(base) not in bases and type(base).__name__ != "Conv1D":  # GPT-2's linear layer
        return f"its base is {type(base).__name__}, not a plain layer of torch"
    if not base.weight.is_floating_point():
        return "its base is quantised"
    if layer.lora_variant:
        names = sorted({type(variant).__name__ for variant in layer.lora_variant.values()})
        return f"it is a variant of LoRA ({', '.join(names)})"
    if any(layer.lora_bias.values()):
        return "its update has a bias"
    return _reason_of_convolution(base)


def _reason_of_convolution(base: Any) -> str | None:
    if not isinstance(base, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return None
    if base.groups > 1:
        return f"its base is a convolution in {base.groups} groups"
    if any(step > 1 for step in base.dilation):
        return "its base is dilated, and peft's A is not"
    if isinstance(base.padding, str) or base.padding_mode != "zeros":
        return f"its base pads with padding={base.padding!r}, padding_mode={base.padding_mode!r}"
    return None
