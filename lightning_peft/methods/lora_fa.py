"""LoRA-FA: LoRA with its first matrix frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from lightning_peft.methods.base import Site
from lightning_peft.methods.from_peft.inject import ADAPTER_NAME
from lightning_peft.methods.from_peft.parameters import wrapper_of
from lightning_peft.methods.lora import LoRA
from lightning_peft.methods.registry import register_method

__all__ = ["LoRAFA"]


@register_method
@dataclass(frozen=True)
class LoRAFA(LoRA):
    """Add LoRA whose ``A`` stays at its random values; only ``B`` is trained.

    Zhang et al., "LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language Models
    Fine-tuning", 2023 (https://arxiv.org/abs/2308.03303). The gradient of ``B`` needs ``A x``, of
    ``rank`` features, and not ``x``: without dropout the input of an adapted layer is not kept for
    the backward pass. The identity at step 0, mergeable, in ``peft``'s own format.

    Attributes:
        rank: The rank of the update; narrower layers get the rank that they have, as in LoRA.
        alpha: The update is scaled by ``alpha / rank``; ``None`` means ``alpha = rank``, a scale of
            1.
        dropout: Probability of dropping an entry of the update's input, in [0, 1).
        targets: The adapted layers. ``"auto"`` is every linear layer of the blocks, or the
            convolutions of a backbone without linear layers; fused experts as in LoRA.
        layers: The adapted blocks, such as ``"last:4"``; ``None`` for all.
        exclude: Modules to leave out.
        rslora: Scale by ``alpha / sqrt(rank)`` instead (https://arxiv.org/abs/2312.03732).

    >>> from torch import nn
    >>> import lightning_peft as lp
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> lp.adapt(net, lp.LoRAFA(rank=2)).report().adapter
    20
    """

    name: ClassVar[str] = "lora_fa"
    family: ClassVar[str] = "low-rank"
    formula: ClassVar[str] = "W + (alpha / r) B A, A fixed"
    summary: ClassVar[str] = "LoRA with its first matrix frozen"
    reference: ClassVar[str] = "https://arxiv.org/abs/2308.03303"

    def inject(self, model: nn.Module, sites: tuple[Site, ...]) -> None:
        """See :meth:`Method.inject`."""
        super().inject(model, sites)
        for site in sites:
            layer: Any = (
                wrapper_of(model, site.module, site.parameter)
                if site.parameter
                else model.get_submodule(site.module)
            )
            layer.lora_A[ADAPTER_NAME].requires_grad_(False)
