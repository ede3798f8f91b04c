"""Norm tuning: train the normalisation layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from lightning_peft.anatomy.targets import resolve
from lightning_peft.errors import MethodError
from lightning_peft.methods.base import Layers, Method, Names, Plan, Site
from lightning_peft.methods.registry import register_method

if TYPE_CHECKING:
    from lightning_peft.anatomy import Anatomy

__all__ = ["Norm"]


@register_method
@dataclass(frozen=True)
class Norm(Method):
    """Train the scale and shift of the normalisation layers.

    For transformers: Basu et al., "Strong Baselines for Parameter-Efficient Few-Shot Fine-Tuning",
    2023 (https://arxiv.org/abs/2304.01917); for BatchNorm networks: Frankle et al., "Training
    BatchNorm and Only BatchNorm", 2021 (https://arxiv.org/abs/2003.00152). The identity at step 0;
    costs nothing at inference. A BatchNorm whose scale and shift are both trained also updates its
    running statistics, as in full fine-tuning, unless ``batchnorm="held"`` keeps them: with few
    labels those of small batches are worse than the pretrained ones.

    Attributes:
        targets: The trained normalisation layers.
        layers: The adapted blocks, such as ``"last:4"``; ``None`` for everything.
        exclude: Modules to leave out.

    >>> import timm
    >>> import lightning_peft as lp
    >>> model = timm.create_model("test_vit", num_classes=3)
    >>> adaptation = lp.adapt(model, lp.Norm(layers="last:1"), head=False)
    >>> [name.removeprefix("blocks.5.") for name in adaptation.trained_names()]
    ['norm1.weight', 'norm1.bias', 'norm2.weight', 'norm2.bias']
    """

    name: ClassVar[str] = "norm"
    family: ClassVar[str] = "selective"
    formula: ClassVar[str] = "weights and biases of the norms"
    summary: ClassVar[str] = "train the normalisation layers"
    reference: ClassVar[str] = "https://arxiv.org/abs/2304.01917"
    changes_backbone: ClassVar[bool] = True

    targets: Names = "norms"
    layers: Layers = None
    exclude: Names = None

    def plan(self, anatomy: Anatomy, model: nn.Module) -> Plan:
        """See :meth:`Method.plan`."""
        names = resolve(
            anatomy, model, self.targets or "norms", layers=self.layers, exclude=self.exclude
        )
        train = tuple(
            f"{name}.{key}"
            for name in names
            for key, _ in model.get_submodule(name).named_parameters(recurse=False)
        )
        if not train:
            raise MethodError(
                f"norm: expected normalisation layers with a scale or a shift, got {len(names)} "
                "layers without parameters. Use 'lora' or 'bitfit' for this backbone."
            )
        return Plan(sites=tuple(Site(name, "norm") for name in names), train=train)
