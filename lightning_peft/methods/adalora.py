"""AdaLoRA: LoRA whose ranks are reallocated during training to where they matter most."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from lightning_peft.anatomy.targets import resolve
from lightning_peft.methods.base import Layers, Names, Site, Stepper
from lightning_peft.methods.from_peft.method import PeftMethod
from lightning_peft.methods.from_peft.narrow import (
    cut_ranks,
    kinds_of,
    named,
    narrow_layers,
    rank_problems,
)
from lightning_peft.methods.from_peft.rank_allocation import RankAllocation
from lightning_peft.methods.from_peft.targets import fan_in_fan_out, names_of, target_spec
from lightning_peft.methods.in_weight.part import with_parts
from lightning_peft.methods.registry import register_method
from lightning_peft.methods.settings import size_problems

if TYPE_CHECKING:
    from peft import AdaLoraConfig

    from lightning_peft.anatomy import Anatomy

__all__ = ["AdaLoRA"]


@register_method
@dataclass(frozen=True)
class AdaLoRA(PeftMethod):
    """Add LoRA as ``P diag(E) Q``, whose least important entries of ``E`` are pruned in training.

    Zhang et al., "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", 2023
    (https://arxiv.org/abs/2303.10512). Starts with ``initial_rank`` everywhere and ends with
    ``rank`` on average. ``E`` is zero at first, so step 0 is the identity; mergeable. The ``PEFT``
    callback and the mixin perform the actions of each step (the penalty for P and Q that are not
    orthogonal, the allocation after the optimizer's step) and keep their state in checkpoints; for
    a loop of your own, see :meth:`Adaptation.steppers`.

    Attributes:
        rank: The average rank at the end; a layer with fewer at the start counts with these.
        initial_rank: The rank of each update at the start, more than ``rank``. A layer whose
            smaller side is below it starts with that rank, and the same factor; one that
            ``targets`` names is refused.
        alpha: An update is scaled by ``alpha / initial_rank``; ``None`` is a scale of 1.
        dropout: Probability of dropping an entry of the update's input, in [0, 1).
        warmup: Fraction of the run before the first rank is pruned, in [0, 1).
        final: Fraction of the run after the last rank is pruned, in [0, 1).
        interval: Steps from one allocation to the next.
        orthogonality: Weight of the penalty.
        targets: The adapted layers. ``"auto"`` is every linear layer of the blocks.
        layers: The adapted blocks, such as ``"last:4"``; ``None`` for all.
        exclude: Modules to leave out.

    >>> import timm
    >>> import lightning_peft as lp
    >>> model = timm.create_model("test_vit", num_classes=3)
    >>> adaptation = lp.adapt(model, lp.AdaLoRA(rank=2, initial_rank=4))
    >>> adaptation.report().adapter
    21600
    """

    name: ClassVar[str] = "adalora"
    family: ClassVar[str] = "low-rank"
    formula: ClassVar[str] = "W + s P diag(E) Q, with ranks allocated in training"
    summary: ClassVar[str] = "low-rank updates whose ranks move to where they matter"
    reference: ClassVar[str] = "https://arxiv.org/abs/2303.10512"

    rank: int = 8
    initial_rank: int = 12
    alpha: float | None = None
    dropout: float = 0.0
    warmup: float = 0.1
    final: float = 0.3
    interval: int = 5
    orthogonality: float = 0.1
    targets: Names = "auto"
    layers: Layers = None
    exclude: Names = None

    def problems(self) -> Iterable[str]:
        """See :meth:`Method.problems`."""
        yield from size_problems(
            rank=self.rank,
            initial_rank=self.initial_rank,
            dropout=self.dropout,
            interval=self.interval,
        )
        ranks = (self.rank, self.initial_rank)
        if all(isinstance(rank, int) for rank in ranks) and self.initial_rank <= self.rank:
            yield (
                f"expected initial_rank to be more than rank ({self.rank}), so that there are "
                f"ranks to prune, got {ranks[1]}"
            )
        if self.alpha is not None and not self.alpha > 0:
            yield f"expected alpha to be positive, or None for a scale of 1, got {self.alpha!r}"
        if not (self.warmup >= 0 and self.final >= 0 and self.warmup + self.final < 1):
            yield (
                "expected warmup and final to be fractions of the run that leave some of it for "
                f"the allocation, got {self.warmup!r} and {self.final!r}"
            )
        if not self.orthogonality >= 0:
            yield f"expected orthogonality to be 0 or positive, got {self.orthogonality!r}"

    @property
    def tuner_name(self) -> str:
        """See :attr:`PeftMethod.tuner_name`."""
        return "ADALORA"

    def select(self, anatomy: Anatomy, model: nn.Module) -> tuple[Site, ...]:
        """See :meth:`PeftMethod.select`."""
        names = resolve(
            anatomy, model, self.targets or "auto", layers=self.layers, exclude=self.exclude
        )
        narrow = narrow_layers(model, with_parts(model, names), self.initial_rank)
        kinds = kinds_of(self.kind, narrow)
        return tuple(Site(name, kinds.get(name, self.kind)) for name in names)

    def site_problems(self, model: nn.Module, names: tuple[str, ...]) -> Iterable[str]:
        """See :meth:`PeftMethod.site_problems`."""
        yield from rank_problems(model, named(names, self.targets), self.initial_rank)

    def inject(self, model: nn.Module, sites: tuple[Site, ...]) -> None:
        """See :meth:`Method.inject`."""
        narrow = narrow_layers(model, names_of(sites), self.initial_rank)
        super().inject(model, sites)
        cut_ranks(model, narrow)

    def peft_config(self, model: nn.Module, sites: tuple[Site, ...]) -> AdaLoraConfig:
        """See :meth:`PeftMethod.peft_config`; the schedule waits for the run's length."""
        from peft import AdaLoraConfig

        names = names_of(sites)
        return AdaLoraConfig(
            target_r=self.rank,
            init_r=self.initial_rank,
            lora_alpha=self.initial_rank if self.alpha is None else self.alpha,
            lora_dropout=self.dropout,
            orth_reg_weight=self.orthogonality,
            deltaT=self.interval,
            total_step=1,
            target_modules=target_spec(model, names),
            **fan_in_fan_out(model, names),
        )

    def steppers(self, model: nn.Module) -> list[Stepper]:
        """See :meth:`Method.steppers`."""
        return [RankAllocation(model, self)]
