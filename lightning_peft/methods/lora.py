"""LoRA: low-rank updates next to frozen weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from lightning_peft.anatomy.targets import resolve
from lightning_peft.errors import MethodError, some
from lightning_peft.methods.base import Layers, Names, Site
from lightning_peft.methods.from_peft.experts import experts_among, kept_parameters
from lightning_peft.methods.from_peft.method import PeftMethod
from lightning_peft.methods.from_peft.narrow import (
    kinds_of,
    named,
    narrow_layers,
    rank_patterns,
    rank_problems,
)
from lightning_peft.methods.from_peft.parameters import parameters_of
from lightning_peft.methods.from_peft.targets import fan_in_fan_out, names_of, target_spec
from lightning_peft.methods.in_weight.part import with_parts
from lightning_peft.methods.registry import register_method

if TYPE_CHECKING:
    from peft import LoraConfig

    from lightning_peft.anatomy import Anatomy

__all__ = ["LoRA"]


@register_method
@dataclass(frozen=True)
class LoRA(PeftMethod):
    """Add a low-rank update to each targeted weight: ``W x + (alpha / rank) B A x``.

    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2022
    (https://arxiv.org/abs/2106.09685). ``A`` is drawn at random and ``B`` is zero, so step 0 is the
    identity. Merges into the weight; then it costs nothing at inference. A thin front on
    ``peft.LoraConfig``; for its other options use ``lp.HF("lora", ...)``.

    Attributes:
        rank: The rank of the update. A layer whose smaller side is below it gets an update of that
            rank, with the same factor ``alpha / rank``; one that ``targets`` names is refused.
        alpha: The update is scaled by ``alpha / rank``; ``None`` means ``alpha = rank``, a scale of
            1.
        dropout: Probability of dropping an entry of the update's input, in [0, 1).
        targets: The adapted layers. ``"auto"`` is every linear layer of the blocks, or the
            convolutions of a backbone without linear layers. Experts that are fused into one
            parameter are no layers: ``["auto", "experts"]`` adapts them as well, which computes all
            of their weights in each forward and keeps them for the backward pass.
        layers: The adapted blocks, such as ``"last:4"``; ``None`` for all.
        exclude: Modules to leave out.
        rslora: Scale by ``alpha / sqrt(rank)`` instead (https://arxiv.org/abs/2312.03732); with
            ``alpha=None`` the scale is 1 either way.

    >>> from torch import nn
    >>> import lightning_peft as lp
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> adaptation = lp.adapt(net, lp.LoRA(rank=2, alpha=4))
    >>> [site.module for site in adaptation.sites], adaptation.report().adapter
    (['0', '2'], 44)
    """

    name: ClassVar[str] = "lora"
    family: ClassVar[str] = "low-rank"
    formula: ClassVar[str] = "W + (alpha / r) B A"
    summary: ClassVar[str] = "low-rank updates added to frozen weights"
    reference: ClassVar[str] = "https://arxiv.org/abs/2106.09685"
    accelerated: ClassVar[bool] = True
    adapts_parameters: ClassVar[bool] = True

    rank: int = 8
    alpha: float | None = None
    dropout: float = 0.0
    targets: Names = "auto"
    layers: Layers = None
    exclude: Names = None
    rslora: bool = False

    def problems(self) -> Iterable[str]:
        """See :meth:`Method.problems`."""
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            yield f"expected rank to be a whole number from 1, got {self.rank!r}"
        if self.alpha is not None and not self.alpha > 0:
            yield f"expected alpha to be positive, or None for alpha = rank, got {self.alpha!r}"
        if not 0 <= self.dropout < 1:
            yield f"expected dropout to be a probability in [0, 1), got {self.dropout!r}"

    def select(self, anatomy: Anatomy, model: nn.Module) -> tuple[Site, ...]:
        """See :meth:`PeftMethod.select`."""
        targets, experts = experts_among(anatomy, model, self.targets or "auto")
        names: tuple[str, ...] = ()
        if targets or not experts:
            names = resolve(anatomy, model, targets, layers=self.layers, exclude=self.exclude)
        narrow = narrow_layers(model, with_parts(model, names), self.rank)
        kinds = kinds_of(self.kind, narrow)
        sites = tuple(Site(module, self.kind, parameter=key) for module, key in experts)
        parameters = kept_parameters(anatomy, model, sites, self.layers, self.exclude)
        if parameters and (self.dropout or not self.adapts_parameters):
            got = f"dropout={self.dropout}" if self.adapts_parameters else f"'{self.name}'"
            raise MethodError(
                f"{self.name}: expected LoRA without dropout where experts are fused into one "
                f"parameter, whose update is in the weight, got {got} for "
                f"{some(parameters_of(parameters), 2)}. Leave them out of the targets, or use LoRA "
                "with dropout=0."
            )
        return (*(Site(name, kinds.get(name, self.kind)) for name in names), *parameters)

    def site_problems(self, model: nn.Module, names: tuple[str, ...]) -> Iterable[str]:
        """See :meth:`PeftMethod.site_problems`."""
        yield from rank_problems(model, named(names, self.targets), self.rank)

    def peft_config(self, model: nn.Module, sites: tuple[Site, ...]) -> LoraConfig:
        """See :meth:`PeftMethod.peft_config`."""
        from peft import LoraConfig

        names = names_of(sites)
        alpha = self.alpha
        if alpha is None:
            alpha = math.sqrt(self.rank) if self.rslora else self.rank
        narrow = narrow_layers(model, names, self.rank)
        return LoraConfig(
            r=self.rank,
            lora_alpha=alpha,
            lora_dropout=self.dropout,
            use_rslora=self.rslora,
            target_modules=target_spec(model, names),
            target_parameters=parameters_of(sites) or None,
            **rank_patterns(narrow, self.rank, alpha, self.rslora),
            **fan_in_fan_out(model, names),
            **self._extra(),
        )

    def _extra(self) -> dict[str, Any]:
        return {}
