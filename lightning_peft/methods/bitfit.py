"""BitFit: train the biases of the backbone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from lightning_peft.errors import MethodError
from lightning_peft.methods.base import Layers, Method, Names, Plan, Site
from lightning_peft.methods.from_peft.experts import fused_experts
from lightning_peft.methods.registry import register_method
from lightning_peft.methods.selection import selected_modules

if TYPE_CHECKING:
    from lightning_peft.anatomy import Anatomy

__all__ = ["BitFit"]


@register_method
@dataclass(frozen=True)
class BitFit(Method):
    """Train all biases of the backbone, and no other parameter of it.

    Ben Zaken et al., "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked
    Language-models", 2022 (https://arxiv.org/abs/2106.10199). The identity at step 0; costs nothing
    at inference, since the biases are trained in place.

    Attributes:
        targets: Modules below which biases are trained; ``None`` for the whole backbone.
        layers: The adapted blocks, such as ``"last:4"``; ``None`` for everything.
        exclude: Modules to leave out.

    >>> from torch import nn
    >>> import lightning_peft as lp
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> lp.adapt(net, lp.BitFit()).trained_names()
    ('0.bias', '2.bias')
    """

    name: ClassVar[str] = "bitfit"
    family: ClassVar[str] = "selective"
    formula: ClassVar[str] = "biases"
    summary: ClassVar[str] = "train the backbone's biases"
    reference: ClassVar[str] = "https://arxiv.org/abs/2106.10199"
    changes_backbone: ClassVar[bool] = True

    targets: Names = None
    layers: Layers = None
    exclude: Names = None

    def plan(self, anatomy: Anatomy, model: nn.Module) -> Plan:
        """See :meth:`Method.plan`."""
        experts = fused_experts(model)
        found = [
            (module_name, f"{module_name}.{key}" if module_name else key)
            for module_name, module in selected_modules(self, anatomy, model)
            for key, parameter in module._parameters.items()
            if parameter is not None and is_bias(key, parameter, module_name in experts)
        ]
        if not found:
            raise MethodError(
                "bitfit: expected biases to train, got a selection without any. Norm layers can be "
                "trained with 'norm', and low-rank adapters do not need a bias ('lora')."
            )
        sites = tuple(dict.fromkeys(Site(module_name, "bias") for module_name, _ in found))
        return Plan(sites=sites, train=tuple(name for _, name in found))


def is_bias(key: str, parameter: nn.Parameter, fused: bool = False) -> bool:
    """Whether a module's own parameter is an additive bias (``q_bias``, ``bias_ih_l0``).

    Args:
        key: Its name in the module.
        parameter: The parameter.
        fused: Whether the module holds several experts, each with a row of the bias.
    """
    return parameter.ndim == 1 + fused and "bias" in key.split("_")
