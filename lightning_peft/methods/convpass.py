"""Convpass: convolutional bypasses parallel to attention and MLP."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from lightning_peft.anatomy.names import inside
from lightning_peft.methods.base import Layers, Names, Site
from lightning_peft.methods.bottleneck import QuickGELU
from lightning_peft.methods.child import BesideAdapter, ChildAdapter, ChildMethod
from lightning_peft.methods.places import Grid, adapted_blocks, grid_of, outputs_of
from lightning_peft.methods.registry import register_method
from lightning_peft.methods.settings import size_problems

if TYPE_CHECKING:
    from lightning_peft.anatomy import Anatomy

__all__ = ["Convpass"]


class Bypass(BesideAdapter):
    """``scale up(act(conv(act(down(x)))))`` parallel to a branch, with the patches as an image.

    Class and register tokens go through the convolution one by one, each as an image of one pixel.
    """

    def __init__(self, grid: Grid, width: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.down = nn.Linear(grid.width, width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.up = nn.Linear(width, grid.width)
        self.act = QuickGELU()
        self.dropout = nn.Dropout(dropout)
        self.prefix, self.size, self.scale = grid.prefix, grid.size, scale
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.dirac_(self.conv.weight)  # only the centre tap: each token by itself
        for zero in (self.down.bias, self.conv.bias, self.up.weight, self.up.bias):
            assert zero is not None
            nn.init.zeros_(zero)

    def change(self, x: Tensor) -> Tensor:
        """See :meth:`BesideAdapter.change`; ``(B, N, D)`` to ``(B, N, D)``."""
        hidden = self.act(self.down(x.to(self.down.weight.dtype)))
        batch, tokens, width = hidden.shape
        special, patches = hidden[:, : self.prefix], hidden[:, self.prefix :]
        rows, columns = self._layout(tokens - self.prefix)
        image = patches.transpose(1, 2).reshape(batch, width, rows, columns)
        parts = [self.conv(image).flatten(2).transpose(1, 2)]
        if self.prefix:
            alone = special.reshape(-1, width, 1, 1)
            parts.insert(0, self.conv(alone).reshape(batch, self.prefix, width))
        return self.up(self.dropout(self.act(torch.cat(parts, 1)))) * self.scale

    def _layout(self, patches: int) -> tuple[int, int]:
        """Return rows and columns; an image of another size than the backbone's must be square."""
        if patches == self.size[0] * self.size[1]:
            return self.size
        side = round(patches**0.5)
        if side * side != patches:
            raise ValueError(
                f"convpass: expected {self.size[0]} x {self.size[1]} patches or a square of them, "
                f"got {patches}."
            )
        return side, side


@register_method
@dataclass(frozen=True)
class Convpass(ChildMethod):
    """Add a convolutional bottleneck parallel to each attention and each MLP of a ViT.

    Jie and Deng, "Convolutional Bypasses Are Better Vision Transformer Adapters", 2022
    (https://arxiv.org/abs/2207.07039): ``x + f(LN x) + scale up(act(conv3x3(act(down(LN x)))))``.
    ``up`` starts at zero, so step 0 is the identity. Not mergeable.

    Attributes:
        bottleneck: Channels of the convolution.
        scale: Factor of the added term; the paper chooses it from 0.01 to 100 for each task.
        dropout: Probability of dropping a channel before ``up``; the paper's 0.1.
        attention_only: Adapt the attention only, not the MLPs.
        layers: The adapted blocks, such as ``"last:4"``; ``None`` for all.
        exclude: Modules to leave out.

    >>> import timm
    >>> import lightning_peft as lp
    >>> model = timm.create_model("test_vit", num_classes=3)
    >>> adaptation = lp.adapt(model, lp.Convpass(bottleneck=4))
    >>> adaptation.report().adapter
    8736
    """

    name: ClassVar[str] = "convpass"
    family: ClassVar[str] = "bottleneck"
    formula: ClassVar[str] = "x + f(norm(x)) + s up(act(conv(act(down(norm(x))))))"
    summary: ClassVar[str] = "convolutional bypasses parallel to attention and MLP"
    reference: ClassVar[str] = "https://arxiv.org/abs/2207.07039"

    bottleneck: int = 8
    scale: float = 1.0
    dropout: float = 0.1
    attention_only: bool = False
    layers: Layers = None
    exclude: Names = None

    def problems(self) -> Iterable[str]:
        """See :meth:`Method.problems`."""
        yield from size_problems(bottleneck=self.bottleneck, scale=self.scale, dropout=self.dropout)

    def select(self, anatomy: Anatomy, model: nn.Module) -> tuple[Site, ...]:
        """See :meth:`ChildMethod.select`."""
        grid_of(self.name, anatomy, model)
        branches = ("attention",) if self.attention_only else ("attention", "mlp")
        names = outputs_of(
            branches, anatomy, model, self.name, layers=self.layers, exclude=self.exclude
        )
        blocks = adapted_blocks(anatomy, model, self.name, None, None)
        sites = []
        for name in names:
            block = next(block for block in blocks if inside(name, (block,)))
            role = "mlp-in" if name in anatomy.roles["mlp-out"] else "qkv"
            entrance = next(n for n in anatomy.roles[role] if inside(n, (block,)))
            sites.append(Site(name, "bypass", parts=(entrance,)))
        return tuple(sites)

    def build(self, model: nn.Module, sites: tuple[Site, ...]) -> Iterator[ChildAdapter]:
        """See :meth:`ChildMethod.build`."""
        from lightning_peft.anatomy import anatomy

        grid = grid_of(self.name, anatomy(model), model)
        for _ in sites:
            yield Bypass(grid, self.bottleneck, self.scale, self.dropout)
