"""How each library holds a weight as codes, found by the names of its classes.

No library is imported here: a layer of one is only there if its owner has imported it.
"""

from __future__ import annotations

import copy
import sys
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

__all__ = ["SCHEMES", "Scheme"]


class Scheme(ABC):
    """One library's way of holding the weight of a linear layer."""

    packs: ClassVar[str] = ""
    """The name of a parameter that holds several values in each of its entries."""
    reads: ClassVar[bool] = False
    """Whether a layer asks for the state beside its codes when a state dict is loaded."""

    @abstractmethod
    def holds(self, layer: Any) -> bool:
        """Whether a layer is of this scheme, and its weight is codes by now."""

    @abstractmethod
    def name(self, layer: Any) -> str:
        """Return the library and the way, such as ``"bitsandbytes nf4, blocks of 64"``."""

    @abstractmethod
    def state(self, layer: Any) -> dict[str, Tensor]:
        """Return the tensors beside the codes without which they mean nothing."""

    @abstractmethod
    def dequantised(self, layer: Any) -> Tensor:
        """Compute the weight ``(out_features, in_features)`` that the codes stand for."""

    def write(self, layer: Any, weight: Tensor) -> None:
        """Make codes of a weight, as the layer's own were made.

        Args:
            layer: The layer; its parameter is another one afterwards.
            weight: The weight, of the layer's shape.

        Raises:
            NotImplementedError: If the library cannot, with the reason.
        """
        raise NotImplementedError(f"{self.name(layer)} does not say how its codes were made")

    def hold(self, layer: Any) -> None:
        """Keep the library from rewriting the codes of a layer while it is adapted."""
        return

    def release(self, layer: Any) -> None:
        """Undo :meth:`hold`."""
        return


class FourBit(Scheme):
    """``Linear4bit`` of bitsandbytes: blocks of 4-bit codes, each with a scale."""

    _PACKS = "support_avx512bf16_for_cpu"

    def holds(self, layer: Any) -> bool:
        """See :meth:`Scheme.holds`."""
        weight = layer._parameters.get("weight")
        return (
            _is_a(weight, "Params4bit")
            and self._state_of(layer) is not None
            and hasattr(layer, "in_features")
        )

    def name(self, layer: Any) -> str:
        """See :meth:`Scheme.name`."""
        state = self._state_of(layer)
        nested = ", scales in 8 bits" if self._is_nested(state) else ""
        return f"bitsandbytes {state.quant_type}, blocks of {state.blocksize}{nested}"

    def state(self, layer: Any) -> dict[str, Tensor]:
        """See :meth:`Scheme.state`."""
        state = self._state_of(layer)
        inner = getattr(state, "state2", None)
        found = {"absmax": state.absmax, "code": state.code, "offset": state.offset}
        if inner is not None:
            found |= {"nested_absmax": inner.absmax, "nested_code": inner.code}
        return {key: value for key, value in found.items() if isinstance(value, Tensor)}

    def dequantised(self, layer: Any) -> Tensor:
        """See :meth:`Scheme.dequantised`."""
        self._unpack(layer)
        from bitsandbytes.functional import dequantize_4bit

        found: Tensor = dequantize_4bit(layer.weight.data, self._state_of(layer))
        return found

    def write(self, layer: Any, weight: Tensor) -> None:
        """See :meth:`Scheme.write`."""
        from bitsandbytes.nn import Params4bit

        old, state = layer.weight, self._state_of(layer)
        made = Params4bit(
            weight.to(state.dtype).cpu(),
            requires_grad=False,
            compress_statistics=old.compress_statistics,
            blocksize=state.blocksize,
            quant_type=state.quant_type,
            quant_storage=old.quant_storage,
            module=layer,
        )
        layer.weight = made.to(old.device)

    def hold(self, layer: Any) -> None:
        """See :meth:`Scheme.hold`.

        In evaluation on a CPU with AVX512-BF16, bitsandbytes packs the codes anew, with the scales
        in bfloat16: outputs change, and a layer so packed gives no gradient to those before it.
        """
        self._unpack(layer)
        if layer.__dict__.get(self._PACKS):
            layer.__dict__[self._PACKS] = False
            layer.__dict__[_HELD] = True

    def release(self, layer: Any) -> None:
        """See :meth:`Scheme.release`."""
        if layer.__dict__.pop(_HELD, False):
            layer.__dict__[self._PACKS] = True

    @staticmethod
    def _state_of(layer: Any) -> Any:
        own = getattr(layer.weight, "quant_state", None)
        return layer.__dict__.get("quant_state") if own is None else own

    @staticmethod
    def _is_nested(state: Any) -> bool:
        return bool(state.nested or getattr(state, "original_nested", False))

    def _unpack(self, layer: Any) -> None:
        if getattr(self._state_of(layer), "packing_format_for_cpu", False):
            layer.state_dict()  # which bitsandbytes does in the form that is not packed


class EightBit(Scheme):
    """``Linear8bitLt`` of bitsandbytes: a row of int8 codes and one scale for each output."""

    def holds(self, layer: Any) -> bool:
        """See :meth:`Scheme.holds`."""
        weight = layer._parameters.get("weight")
        return _is_a(weight, "Int8Params") and weight.dtype == torch.int8 and "state" in vars(layer)

    def name(self, layer: Any) -> str:
        """See :meth:`Scheme.name`."""
        return f"bitsandbytes int8, outliers above {layer.state.threshold:g}"

    def state(self, layer: Any) -> dict[str, Tensor]:
        """See :meth:`Scheme.state`."""
        return {"SCB": self._scales(layer)}

    def dequantised(self, layer: Any) -> Tensor:
        """See :meth:`Scheme.dequantised`."""
        return layer.weight.data.float() * (self._scales(layer).float().view(-1, 1) / 127)

    def write(self, layer: Any, weight: Tensor) -> None:
        """See :meth:`Scheme.write`."""
        from bitsandbytes.nn import Int8Params

        device = layer.weight.device
        made = Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False)
        layer.weight = made.to(device)
        layer.state.reset_grads()

    @staticmethod
    def _scales(layer: Any) -> Tensor:
        found = getattr(layer.weight, "SCB", None)  # until the first forward
        scales: Tensor = layer.state.SCB if found is None else found
        return scales


class TorchAO(Scheme):
    """A parameter of torchao, which looks like one of floating-point numbers."""

    def holds(self, layer: Any) -> bool:
        """See :meth:`Scheme.holds`."""
        weight = layer._parameters.get("weight")
        return (
            weight is not None
            and type(weight).__module__.startswith("torchao.")
            and hasattr(weight, "dequantize")
            and hasattr(layer, "in_features")
        )

    def name(self, layer: Any) -> str:
        """See :meth:`Scheme.name`."""
        codes = [t for t in self._parts(layer).values() if not t.is_floating_point()]
        held = {tensor.dtype for tensor in codes}
        told = getattr(layer.weight, "target_dtype", None)  # int4, in bytes
        kinds = sorted(str(kind).removeprefix("torch.") for kind in ({told} if told else held))
        return f"torchao {type(layer.weight).__name__} ({', '.join(kinds)})"

    def state(self, layer: Any) -> dict[str, Tensor]:
        """See :meth:`Scheme.state`; the codes are among them."""
        return self._parts(layer)

    def dequantised(self, layer: Any) -> Tensor:
        """See :meth:`Scheme.dequantised`."""
        found: Tensor = layer.weight.dequantize()
        return found

    def write(self, layer: Any, weight: Tensor) -> None:
        """See :meth:`Scheme.write`; the settings are read off the codes, and tried on them."""
        old = layer.weight
        own = old.dequantize()
        again = self._like(old, own)
        if again is None or (again.dequantize() - own).abs().max() > old.scale.abs().max():
            raise NotImplementedError(f"{self.name(layer)} does not say how its codes were made")
        made = self._like(old, weight.to(old.device, old.dtype))
        layer.weight = nn.Parameter(made, requires_grad=False)

    @staticmethod
    def _like(old: Any, weight: Tensor) -> Any:
        """Return codes of a weight in blocks and by a mapping like others; ``None`` if unknown."""
        kind, name = type(old), type(old).__name__
        if name not in ("Int8Tensor", "IntxUnpackedToInt8Tensor"):
            return None
        from torchao.quantization import PerGroup, PerRow, PerTensor
        from torchao.quantization.quant_primitives import MappingType

        zero = getattr(old, "zero_point", None)
        symmetric = zero is None or not zero.any()
        mapping = MappingType.SYMMETRIC if symmetric else MappingType.ASYMMETRIC
        block = tuple(old.block_size)
        if name == "Int8Tensor":
            rows, columns = weight.shape
            granularity: Any = PerGroup(block[1])
            if block == (1, columns):
                granularity = PerRow()
            elif block == (rows, columns):
                granularity = PerTensor()
            return kind.from_hp(
                weight, granularity, mapping, act_quant_kwargs=old.act_quant_kwargs,
                act_quant_scale=old.act_quant_scale, act_pre_scale=old.act_pre_scale,
                act_quant_zero_point=old.act_quant_zero_point, reduce_range=old.reduce_range,
            )  # fmt: skip
        return kind.from_hp(
            weight, block, old.target_dtype, mapping_type=mapping,
            activation_quantization=old.activation_quantization,
        )  # fmt: skip

    @staticmethod
    def _parts(layer: Any) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        pending: list[tuple[str, Any]] = [("", layer.weight)]
        while pending:  # a tensor of tensors
            name, tensor = pending.pop()
            flatten = getattr(tensor, "__tensor_flatten__", None)
            if type(tensor) in (Tensor, nn.Parameter) or flatten is None:
                found[name] = tensor
                continue
            keys = flatten()[0]
            inside = ((f"{name}.{key}" if name else key, getattr(tensor, key)) for key in keys)
            pending += [(name, part) for name, part in inside if isinstance(part, Tensor)]
        return dict(sorted(found.items()))


class HQQ(Scheme):
    """``HQQLinear``: packed codes, and scales and zeros in ``meta``."""

    packs = "W_q"
    reads = True

    def holds(self, layer: Any) -> bool:
        """See :meth:`Scheme.holds`."""
        return (
            layer._parameters.get("W_q") is not None
            and isinstance(layer.__dict__.get("meta"), dict)
            and hasattr(layer, "dequantize")
        )

    def name(self, layer: Any) -> str:
        """See :meth:`Scheme.name`."""
        return f"HQQ {layer.meta['nbits']} bits, groups of {layer.meta['group_size']}"

    def state(self, layer: Any) -> dict[str, Tensor]:
        """See :meth:`Scheme.state`."""
        found = {k: v for k, v in layer.meta.items() if isinstance(v, Tensor)}
        for outer, inner in layer.meta.items():  # scales that are codes themselves
            if isinstance(inner, dict):
                tensors = {k: v for k, v in inner.items() if isinstance(v, Tensor)}
                found |= {f"{outer}.{key}": value for key, value in tensors.items()}
        return found

    def dequantised(self, layer: Any) -> Tensor:
        """See :meth:`Scheme.dequantised`."""
        found: Tensor = layer.dequantize()
        return found.reshape(layer.out_features, layer.in_features)

    def write(self, layer: Any, weight: Tensor) -> None:
        """See :meth:`Scheme.write`."""
        config: Any = getattr(layer, "quant_config", None)
        if config is None:  # of a layer that was loaded as codes
            raise NotImplementedError(f"{self.name(layer)} was loaded without its settings")
        own = copy.deepcopy(config)
        asked = {**own, "offload_meta": getattr(layer, "offload_meta", False)}  # which it takes out
        device = str(layer.device)
        made = type(layer)(None, asked, compute_dtype=layer.compute_dtype, device=device)
        own.pop("offload_meta", None)
        made.quantize(weight.to(layer.device), **own)
        layer.W_q, layer.meta = made.W_q, made.meta


def _is_a(tensor: Any, name: str) -> bool:
    return "bitsandbytes" in sys.modules and any(k.__name__ == name for k in type(tensor).__mro__)


_HELD = "_lightning_peft_held"
"""The attribute of a layer that packs its codes if it is not held."""

SCHEMES: tuple[Scheme, ...] = (FourBit(), EightBit(), TorchAO(), HQQ())
"""Every scheme that is known."""
