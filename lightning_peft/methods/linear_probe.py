"""Linear probe: train the head on a frozen backbone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from lightning_peft.methods.base import Method, Plan
from lightning_peft.methods.registry import register_method

if TYPE_CHECKING:
    from lightning_peft.anatomy import Anatomy

__all__ = ["LinearProbe"]


@register_method
@dataclass(frozen=True)
class LinearProbe(Method):
    """Train the head only; the backbone stays as it is.

    Alain and Bengio, "Understanding intermediate layers using linear classifier probes", 2017
    (https://arxiv.org/abs/1610.01644). Every method trains the head; this one trains nothing
    else, so a backbone in which no head is found is refused.

    >>> import timm
    >>> import lightning_peft as lp
    >>> model = timm.create_model("test_vit", num_classes=3)
    >>> lp.adapt(model, lp.LinearProbe()).trained_names()
    ('head.weight', 'head.bias')
    """

    name: ClassVar[str] = "linear_probe"
    family: ClassVar[str] = "selective"
    formula: ClassVar[str] = "the head"
    summary: ClassVar[str] = "train the head on a frozen backbone"
    reference: ClassVar[str] = "https://arxiv.org/abs/1610.01644"

    def plan(self, anatomy: Anatomy, model: nn.Module) -> Plan:
        """See :meth:`Method.plan`."""
        return Plan()
