"""DoRA: LoRA on the direction of a weight, with its magnitude trained separately."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lightning_peft.methods.lora import LoRA
from lightning_peft.methods.registry import register_method

__all__ = ["DoRA"]


@register_method
@dataclass(frozen=True)
class DoRA(LoRA):
    """Train the direction of each targeted weight with LoRA and its magnitude as a vector.

    Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", 2024 (https://arxiv.org/abs/2402.09353).
    The identity at step 0 up to rounding, since the magnitude is divided by the norm that it
    starts from. Merges. Slower than LoRA: each step computes the norm of every adapted weight. The
    settings are those of :class:`LoRA`.

    >>> import timm
    >>> import lightning_peft as lp
    >>> model = timm.create_model("test_vit", num_classes=3)
    >>> adaptation = lp.adapt(model, lp.DoRA(rank=4, targets="qkv"))
    >>> adaptation.report().adapter
    7296
    """

    name: ClassVar[str] = "dora"
    family: ClassVar[str] = "low-rank"
    formula: ClassVar[str] = "m (W + s B A) / |W + s B A|"
    summary: ClassVar[str] = "LoRA on the direction, a trained magnitude"
    accelerated: ClassVar[bool] = False
    adapts_parameters: ClassVar[bool] = False
    reference: ClassVar[str] = "https://arxiv.org/abs/2402.09353"

    def peft_options(self) -> Mapping[str, Any]:
        """See :meth:`PeftMethod.peft_options`."""
        return {**super().peft_options(), **self._extra()}

    def _extra(self) -> dict[str, Any]:
        return {"use_dora": True}
