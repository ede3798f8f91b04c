"""Switching ``peft``'s LoRA layers to the fast forward, in place."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import nn

from lightning_peft.errors import MethodError
from lightning_peft.kernels.fast_layers import MEMORY, REBUILDS, fast_classes, memory_of
from lightning_peft.kernels.instances import class_of_peft, with_class_of_peft
from lightning_peft.kernels.rebuild import Memory

__all__ = ["Acceleration", "accelerate", "acceleration_of", "holds_lora", "memory_problem"]


@dataclass(frozen=True)
class Acceleration:
    """Which LoRA layers of a model are fast, and why others are not.

    Attributes:
        fast: Names of the layers.
        plain: The reason for each other LoRA layer, by name.
        memory: Which tensors the fast layers may recompute in the backward pass; ``"mixed"`` if
            parts of the model have different settings.

    >>> import peft
    >>> from torch import nn
    >>> import lightning_peft as lp
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> model = peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=["0", "2"]))
    >>> acceleration = lp.accelerate(model)
    >>> len(acceleration.fast), acceleration.plain
    (2, {})
    """

    fast: tuple[str, ...]
    plain: dict[str, str]
    memory: Memory | Literal["mixed"] = "default"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types: counts, and the number of layers for each reason."""
        reasons = dict(Counter(self.plain.values()))
        return {"fast": len(self.fast), "plain": reasons, "memory": self.memory}

    def __str__(self) -> str:
        what = {
            "default": "",
            "low": ", low in memory",
            "lowest": ", lowest in memory",
            "high": ", nothing recomputed",
            "mixed": ", mixed settings of memory",
        }
        lines = [f"{len(self.fast)} LoRA layers with the fast forward{what[self.memory]}"]
        for reason, count in Counter(self.plain.values()).items():
            lines.append(f"{count} as peft has them: {reason}")
        return "; ".join(lines)


def accelerate(model: nn.Module, memory: Memory = "default") -> Acceleration:
    """Make ``peft``'s LoRA layers faster: forward and backward with fewer passes over memory.

    Works on any model that ``peft`` has put LoRA into, adapted by this package or not: linear
    layers, convolutions and embeddings. Outputs and gradients are those of ``peft`` up to rounding.
    In situations that the fast forward does not support (several active adapters, mixed batches, a
    merged or disabled adapter, hooks on the base layer), a layer uses ``peft``'s own forward by
    itself. Calling it again has no effect. Copies, pickles and state dicts are as before.

    Args:
        model: A model with LoRA layers, changed in place: their class becomes a subclass of theirs.
        memory: Which tensors a layer recomputes in the backward pass, from tensors that the graph
            keeps in any case: ``"default"`` the output of an activation function (GELU, SiLU) or a
            gate that feeds it; ``"low"`` the output of a layer norm or an RMS norm as well, and in
            the first quarter of the layers (the first half, of gated MLPs) as ``"lowest"``;
            ``"lowest"`` also the input of an activation function or a gate if it comes from an
            adapted layer (an MLP's first), at the price of one more of that layer's products;
            ``"high"`` nothing.

    Returns:
        Which layers are fast now.

    Raises:
        MethodError: If ``memory`` is none of these.

    >>> import peft
    >>> from torch import nn
    >>> import lightning_peft as lp
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> model = peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=["0", "2"]))
    >>> lp.accelerate(model).fast
    ('base_model.model.0', 'base_model.model.2')
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
            kind = class_of_peft(layer)
            with_class_of_peft(layer, fast_classes().get(kind, kind))
            fast[name] = layer
        else:
            plain[name] = reason
    for number, layer in enumerate(fast.values()):
        # the share of the products that "low" recomputes is a compromise: see the benchmarks
        share = number / len(fast)
        low = "lowest" if share < 1 / 4 else "gates" if share < 1 / 2 else "low"
        layer.__dict__[MEMORY] = memory
        layer.__dict__[REBUILDS] = low if memory == "low" else memory
    return Acceleration(tuple(fast), plain, memory)


def acceleration_of(model: nn.Module) -> Acceleration | None:
    """Report which LoRA layers of a model are fast now, without changing the model.

    Args:
        model: Any model.

    Returns:
        As from :func:`accelerate`, or ``None`` for a model without LoRA layers.
    """
    if not holds_lora(model.modules()):
        return None
    from peft.tuners.lora import LoraLayer

    layers = {name: part for name, part in model.named_modules() if isinstance(part, LoraLayer)}
    quick = tuple(fast_classes().values())
    fast = tuple(name for name, layer in layers.items() if isinstance(layer, quick))
    plain = {
        name: _reason(layer) or "it is not accelerated yet"
        for name, layer in layers.items()
        if name not in fast
    }
    settings = {memory_of(layers[name]) for name in fast} or {"default"}
    return Acceleration(fast, plain, settings.pop() if len(settings) == 1 else "mixed")


def holds_lora(modules: Iterable[nn.Module]) -> bool:
    """Whether any module is a LoRA layer of ``peft``, or derived from one."""
    if "peft.tuners.lora" not in sys.modules:  # then there is no such layer
        return False
    from peft.tuners.lora import LoraLayer

    return any(isinstance(module, LoraLayer) for module in modules)


def memory_problem(memory: Any) -> str | None:
    """Return what is wrong with a value of ``memory``, or None."""
    if isinstance(memory, str) and memory in get_args(Memory):
        return None
    return f"memory: expected 'default', 'low', 'lowest' or 'high', got {memory!r}."


def _reason(layer: Any) -> str | None:
    """Return why a layer keeps ``peft``'s forward, or ``None`` if it can be fast."""
    base = layer.get_base_layer()
    fast = fast_classes()
    kind = class_of_peft(layer)
    if hasattr(layer, "in_weight"):
        return "its update is in the weight that the forward reads"
    if kind not in fast and kind not in fast.values():
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
