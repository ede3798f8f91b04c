"""Full fine-tuning, the baseline that every method is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from lightning_peft.methods.base import Method, Plan, Site
from lightning_peft.methods.registry import register_method

if TYPE_CHECKING:
    from lightning_peft.anatomy import Anatomy

__all__ = ["Full"]


@register_method
@dataclass(frozen=True)
class Full(Method):
    """Train every parameter of the backbone.

    This has to be chosen explicitly; all other methods train only the backbone parameters that they
    name.

    >>> from torch import nn
    >>> import lightning_peft as lp
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> report = lp.adapt(net, lp.Full()).report()
    >>> report.trained == report.total
    True
    """

    name: ClassVar[str] = "full"
    family: ClassVar[str] = "selective"
    formula: ClassVar[str] = "everything"
    summary: ClassVar[str] = "train everything (the baseline)"
    reference: ClassVar[str] = "full fine-tuning"
    changes_backbone: ClassVar[bool] = True
    keeps_original: ClassVar[bool] = False

    def plan(self, anatomy: Anatomy, model: nn.Module) -> Plan:
        """See :meth:`Method.plan`."""
        names = tuple(name for name, _ in model.named_parameters())
        return Plan(sites=(Site("", "everything"),), train=names)
