"""IA3: learned scales on keys, values and the MLP's inner activations."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from lightning_peft.anatomy.targets import resolve
from lightning_peft.errors import TargetError
from lightning_peft.methods.base import Layers, Names, Site
from lightning_peft.methods.from_peft.method import PeftMethod
from lightning_peft.methods.from_peft.targets import fan_in_fan_out, names_of, target_spec
from lightning_peft.methods.registry import register_method

if TYPE_CHECKING:
    from peft import IA3Config

    from lightning_peft.anatomy import Anatomy

__all__ = ["IA3"]

FEEDFORWARD = "ia3 feedforward"


@register_method
@dataclass(frozen=True)
class IA3(PeftMethod):
    """Rescale activations with learned vectors.

    Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context
    Learning", 2022 (https://arxiv.org/abs/2205.05638). The scales start at one, so step 0 is the
    identity. Merges. The paper scales keys, values and the input of the MLP's second layer; in a
    fused ``qkv`` the queries are scaled too.

    Attributes:
        targets: The modules whose output is scaled.
        feedforward: The modules whose input is scaled instead.
        layers: The adapted blocks, such as ``"last:4"``; ``None`` for all.
        exclude: Modules to leave out.

    >>> import timm
    >>> import lightning_peft as lp
    >>> model = timm.create_model("test_vit", num_classes=3)
    >>> adaptation = lp.adapt(model, lp.IA3())
    >>> adaptation.report().adapter
    2304
    """

    name: ClassVar[str] = "ia3"
    family: ClassVar[str] = "scaling"
    formula: ClassVar[str] = "l * (W x)"
    summary: ClassVar[str] = "learned scales on attention and MLP activations"
    reference: ClassVar[str] = "https://arxiv.org/abs/2205.05638"

    targets: Names = "qkv"
    feedforward: Names = "mlp-out"
    layers: Layers = None
    exclude: Names = None

    @property
    def tuner_name(self) -> str:
        """See :attr:`PeftMethod.tuner_name`."""
        return "IA3"

    def select(self, anatomy: Anatomy, model: nn.Module) -> tuple[Site, ...]:
        """See :meth:`PeftMethod.select`."""
        kinds: dict[str, str] = {}
        problems = []
        for kind, targets in ((self.kind, self.targets), (FEEDFORWARD, self.feedforward)):
            if targets is None:
                continue
            try:
                names = resolve(anatomy, model, targets, layers=self.layers, exclude=self.exclude)
            except TargetError as error:
                problems.append(f"{kind}: {error}")
            else:
                kinds.update(dict.fromkeys(names, kind))
        if problems:
            raise TargetError(
                " ".join(problems) + " Set targets or feedforward to None for a part that this "
                "backbone does not have."
            )
        if not kinds:
            raise TargetError("ia3: expected targets or feedforward to name modules, got neither.")
        order = (name for name, _ in model.named_modules() if name in kinds)
        return tuple(Site(name, kinds[name]) for name in order)

    def peft_config(self, model: nn.Module, sites: tuple[Site, ...]) -> IA3Config:
        """See :meth:`PeftMethod.peft_config`."""
        from peft import IA3Config

        names = names_of(sites)
        inner = tuple(site.module for site in sites if site.kind == FEEDFORWARD)
        every, feedforward = target_spec(model, names), target_spec(model, inner) if inner else []
        if isinstance(feedforward, list) and not set(feedforward) <= set(every):
            # peft compares the two lists with each other, and not what they match
            feedforward = "|".join(map(re.escape, inner))
        return IA3Config(
            target_modules=every,
            feedforward_modules=feedforward,
            **fan_in_fan_out(model, names),
        )
