"""Ladder side-tuning: a narrow transformer next to a backbone that keeps no graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_peft.errors import MethodError
from lightning_peft.methods.base import Site
from lightning_peft.methods.child import ChildAdapter, ChildMethod
from lightning_peft.methods.features import first, with_first
from lightning_peft.methods.places import grid_of
from lightning_peft.methods.registry import register_method
from lightning_peft.methods.settings import size_problems

if TYPE_CHECKING:
    from lightning_peft.anatomy import Anatomy

__all__ = ["LadderSideTuning"]

_TEMPERATURE = 0.1


class Ladder(ChildAdapter):
    """A side network of width d that reads the output of each block, and is added after the last.

    ``h <- side_i(g_i h + (1 - g_i) down_i(x_i))`` with ``g_i = sigmoid(alpha_i / 0.1)``; then
    ``x + up(norm(h))``.
    """

    def __init__(self, width: int, blocks: int, reduction: int) -> None:
        from timm.models.vision_transformer import Block

        super().__init__()
        side = max(1, width // reduction)
        heads = max(1, side // 32)
        while side % heads:
            heads -= 1
        self.entry = nn.Linear(width, side)
        self.downs = nn.ModuleList(nn.Linear(width, side) for _ in range(blocks))
        self.sides = nn.ModuleList(Block(side, heads, qkv_bias=True) for _ in range(blocks))
        self.gates = nn.Parameter(torch.zeros(blocks))
        self.norm = nn.LayerNorm(side)
        self.up = nn.Linear(side, width)
        assert self.up.bias is not None
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self._seen: dict[int, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave recorded outputs out of copies and pickles."""
        return {**super().__getstate__(), "_seen": {}}

    def connect(self, model: nn.Module, site: Site) -> None:
        """See :meth:`ChildAdapter.connect`."""
        model.get_submodule(site.parts[0]).register_forward_pre_hook(self.begin)
        for name in site.parts[:-1]:
            model.get_submodule(name).register_forward_hook(self.see)
        model.get_submodule(site.parts[-1]).register_forward_hook(self.after)

    def begin(self, block: nn.Module, args: tuple[Any, ...]) -> None:
        """Start with the input of the first block."""
        self._seen = {0: args[0].detach()} if self.active else {}

    def see(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Keep the output of a block, without its graph."""
        if self.active and self._seen:
            self._seen[id(block)] = first(output).detach()

    def after(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Run the side network, and add its output to that of the last block."""
        seen = list(self._seen.values())
        if not torch.is_grad_enabled():
            self._seen = {}  # otherwise gradient checkpointing gets here again
        if not self.active or not seen:
            return output
        x = first(output)
        dtype = self.up.weight.dtype
        h = self.entry(seen[0].to(dtype))
        shares = torch.sigmoid(self.gates / _TEMPERATURE)
        given = [*seen[1:], x.detach()]
        for g, down, side, state in zip(shares, self.downs, self.sides, given, strict=True):
            h = side(g * h + (1 - g) * down(state.to(dtype)))
        return with_first(output, x + self.up(self.norm(h)).to(x.dtype))


@register_method
@dataclass(frozen=True)
class LadderSideTuning(ChildMethod):
    """Train a narrow transformer next to the backbone; no gradient flows through the backbone.

    Sung et al., "LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning",
    2022 (https://arxiv.org/abs/2206.06522), on the blocks of a vision transformer. The side network
    has a block for each of the backbone's, ``reduction`` times narrower, and reads the backbone's
    states through gates; its last layer starts at zero and is added to the backbone's own result,
    so step 0 is the identity. Nothing before it is trained, so the backbone runs without a graph
    and the memory of its activations is saved. The side blocks start at random values (the paper
    prunes the backbone for them). Not mergeable.

    Attributes:
        reduction: Width of the backbone divided by that of the side network; the paper's 8.

    >>> import timm
    >>> import lightning_peft as lp
    >>> model = timm.create_model("test_vit", num_classes=3)
    >>> adaptation = lp.adapt(model, lp.LadderSideTuning(reduction=4))
    >>> adaptation.report().adapter
    28086
    """

    name: ClassVar[str] = "ladder"
    family: ClassVar[str] = "side network"
    formula: ClassVar[str] = "h <- side_i(g_i h + (1 - g_i) down_i(x_i))"
    summary: ClassVar[str] = "a narrow side network; no graph through the backbone"
    reference: ClassVar[str] = "https://arxiv.org/abs/2206.06522"
    shares_host: ClassVar[bool] = False  # it would read other methods' prompts

    reduction: int = 8

    def problems(self) -> Iterable[str]:
        """See :meth:`Method.problems`."""
        yield from size_problems(reduction=self.reduction)

    def select(self, anatomy: Anatomy, model: nn.Module) -> tuple[Site, ...]:
        """See :meth:`ChildMethod.select`."""
        grid = grid_of(self.name, anatomy, model)
        if self.reduction > grid.width:
            raise MethodError(
                f"{self.name}: expected a reduction no larger than the width {grid.width}, got "
                f"{self.reduction}."
            )
        return (Site(anatomy.blocks[-1], "side network", parts=anatomy.blocks),)

    def build(self, model: nn.Module, sites: tuple[Site, ...]) -> Iterator[ChildAdapter]:
        """See :meth:`ChildMethod.build`."""
        from lightning_peft.anatomy import anatomy

        width = grid_of(self.name, anatomy(model), model).width
        yield Ladder(width, len(sites[0].parts), self.reduction)
