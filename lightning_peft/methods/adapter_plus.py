"""Adapter+: a bottleneck after each block, with a trained scale for each channel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from lightning_peft.anatomy.names import inside
from lightning_peft.errors import MethodError
from lightning_peft.methods.base import Layers, Names, Site
from lightning_peft.methods.bottleneck import Bottleneck
from lightning_peft.methods.child import ChildAdapter, ChildMethod
from lightning_peft.methods.features import features_of, first, with_first
from lightning_peft.methods.places import adapted_blocks
from lightning_peft.methods.registry import register_method
from lightning_peft.methods.settings import size_problems

if TYPE_CHECKING:
    from lightning_peft.anatomy import Anatomy

__all__ = ["AdapterPlus"]


class BehindBlock(ChildAdapter):
    """``x + channel_scale * bottleneck(x)`` for a block's output ``x``."""

    def __init__(self, features: int, width: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.bottleneck = Bottleneck(features, width, activation="gelu", dropout=dropout)
        nn.init.trunc_normal_(self.bottleneck.down.weight, std=0.01, a=-0.02, b=0.02)
        self.channel_scale = nn.Parameter(torch.ones(features))
        self.drop_path = drop_path

    def connect(self, model: nn.Module, site: Site) -> None:
        """See :meth:`ChildAdapter.connect`."""
        # before prompts on the same block are removed
        model.get_submodule(site.module).register_forward_hook(self.after, prepend=True)

    def after(self, host: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Add to the block's output."""
        if not self.active:
            return output
        x = first(output)
        change = self.bottleneck(x) * self.channel_scale
        if self.training and self.drop_path:
            keep = 1 - self.drop_path
            shape = (len(x), *(1,) * (x.ndim - 1))
            change = change * change.new_empty(shape).bernoulli_(keep).div_(keep)
        return with_first(output, x + change.to(x.dtype))


@register_method
@dataclass(frozen=True)
class AdapterPlus(ChildMethod):
    """Add a bottleneck after each block: ``x + s * up(gelu(down(x)))``, ``s`` for each channel.

    Steitz and Roth, "Adapters Strike Back", 2024 (https://arxiv.org/abs/2406.06820): after the
    block's last residual sum, no norm, a trained scale for each channel, drop-path. The paper
    starts ``up`` at small random values; here it starts at zero, so that step 0 is the identity.
    Not mergeable.

    Attributes:
        bottleneck: Width of the bottleneck; the paper's 1 to 32.
        dropout: Probability of dropping a unit of the bottleneck, in [0, 1).
        drop_path: Probability of skipping the adapter for a sample; the paper's 0.1.
        layers: The adapted blocks, such as ``"last:4"``; ``None`` for all.
        exclude: Blocks to leave out.

    >>> import timm
    >>> import lightning_peft as lp
    >>> model = timm.create_model("test_vit", num_classes=3)
    >>> adaptation = lp.adapt(model, lp.AdapterPlus(bottleneck=4))
    >>> adaptation.report().adapter
    3864
    """

    name: ClassVar[str] = "adapter_plus"
    family: ClassVar[str] = "bottleneck"
    formula: ClassVar[str] = "x + s * up(gelu(down(x))), s for each channel"
    summary: ClassVar[str] = "bottlenecks after the blocks, scaled by channel"
    reference: ClassVar[str] = "https://arxiv.org/abs/2406.06820"

    bottleneck: int = 8
    dropout: float = 0.0
    drop_path: float = 0.1
    layers: Layers = None
    exclude: Names = None

    def problems(self) -> Iterable[str]:
        """See :meth:`Method.problems`."""
        yield from size_problems(
            bottleneck=self.bottleneck, dropout=self.dropout, drop_path=self.drop_path
        )

    def select(self, anatomy: Anatomy, model: nn.Module) -> tuple[Site, ...]:
        """See :meth:`ChildMethod.select`."""
        sites = []
        for block in adapted_blocks(anatomy, model, self.name, self.layers, self.exclude):
            ends = [
                name
                for name in (*anatomy.roles["mlp-out"], *anatomy.roles["attention-out"])
                if inside(name, (block,)) and not isinstance(model.get_submodule(name), nn.Conv2d)
            ]
            if not ends or not anatomy.roles["attention"]:
                raise MethodError(
                    f"{self.name}: expected the blocks of a transformer, got {block} "
                    f"({type(model.get_submodule(block)).__name__}). Methods that fit: "
                    "'conv_adapter' for convolutions, 'lora', 'ssf', 'norm'."
                )
            sites.append(Site(block, "behind", parts=(ends[0],)))
        return tuple(sites)

    def build(self, model: nn.Module, sites: tuple[Site, ...]) -> Iterator[ChildAdapter]:
        """See :meth:`ChildMethod.build`."""
        for site in sites:
            features = features_of(model.get_submodule(site.parts[0]))[1]
            yield BehindBlock(features, self.bottleneck, self.dropout, self.drop_path)
