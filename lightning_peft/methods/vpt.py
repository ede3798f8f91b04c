"""VPT: trained prompts among the tokens of a vision transformer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_peft.methods.base import Layers, Names, Site
from lightning_peft.methods.child import ChildAdapter, ChildMethod
from lightning_peft.methods.features import first, with_first
from lightning_peft.methods.places import adapted_blocks, grid_of
from lightning_peft.methods.registry import register_method
from lightning_peft.methods.settings import size_problems

if TYPE_CHECKING:
    from lightning_peft.anatomy import Anatomy

__all__ = ["VPTDeep", "VPTShallow"]


class Prompt(ChildAdapter):
    """Tokens that are appended before one block and removed after another (or the same).

    They come after all other tokens: the attention of a plain vision transformer ignores the order,
    and the class token keeps its place. Since they are removed before the pooling, they are not
    part of an average.
    """

    def __init__(self, length: int, width: int, bound: float, dropout: float) -> None:
        super().__init__()
        self.prompt = nn.Parameter(torch.empty(length, width))
        self.dropout = nn.Dropout(dropout)
        nn.init.uniform_(self.prompt, -bound, bound)
        self._joined = False

    def connect(self, model: nn.Module, site: Site) -> None:
        """See :meth:`ChildAdapter.connect`."""
        model.get_submodule(site.module).register_forward_pre_hook(self.join)
        model.get_submodule(site.parts[1]).register_forward_hook(self.leave)

    def join(self, block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Append the prompt to the tokens ``(B, N, D)``."""
        self._joined = self.active
        if not self.active:
            return None
        x: Tensor = args[0]
        prompt = self.dropout(self.prompt).to(x.dtype).expand(x.shape[0], -1, -1)
        return (torch.cat([x, prompt], 1), *args[1:])

    def leave(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Remove the prompt from the tokens."""
        if not self._joined:
            return output
        self._joined = False
        return with_first(output, first(output)[:, : -len(self.prompt)])


@register_method
@dataclass(frozen=True)
class VPTDeep(ChildMethod):
    """Add trained prompt tokens to the image's tokens, different ones in each block.

    Jia et al., "Visual Prompt Tuning", 2022 (https://arxiv.org/abs/2203.12119). The prompts are
    drawn from U(-v, v) with v = sqrt(6 / (fan-in of the patch embedding + D)), so step 0 is *not*
    the identity. Not mergeable: the blocks always compute with more tokens.

    Attributes:
        prompt_length: Tokens in each block.
        dropout: Probability of dropping an entry of a prompt, in [0, 1).
        layers: The adapted blocks, such as ``"last:4"``; ``None`` for all.
        exclude: Blocks to leave out.

    >>> import timm
    >>> import lightning_peft as lp
    >>> model = timm.create_model("test_vit", num_classes=3)
    >>> adaptation = lp.adapt(model, lp.VPTDeep(prompt_length=5))
    >>> adaptation.report().adapter
    1920
    """

    name: ClassVar[str] = "vpt_deep"
    family: ClassVar[str] = "prompt"
    formula: ClassVar[str] = "[x; P_i] for each block i"
    summary: ClassVar[str] = "prompt tokens of its own for each block"
    reference: ClassVar[str] = "https://arxiv.org/abs/2203.12119"
    starts_as_backbone: ClassVar[bool] = False

    prompt_length: int = 10
    dropout: float = 0.0
    layers: Layers = None
    exclude: Names = None

    def problems(self) -> Iterable[str]:
        """See :meth:`Method.problems`."""
        yield from size_problems(prompt_length=self.prompt_length, dropout=self.dropout)

    def select(self, anatomy: Anatomy, model: nn.Module) -> tuple[Site, ...]:
        """See :meth:`ChildMethod.select`."""
        grid_of(self.name, anatomy, model)
        stem = _stem(anatomy)
        blocks = adapted_blocks(anatomy, model, self.name, self.layers, self.exclude)
        return tuple(Site(block, "prompt", parts=(stem, block)) for block in blocks)

    def build(self, model: nn.Module, sites: tuple[Site, ...]) -> Iterator[ChildAdapter]:
        """See :meth:`ChildMethod.build`."""
        from lightning_peft.anatomy import anatomy

        width = grid_of(self.name, anatomy(model), model).width
        for site in sites:
            weight = model.get_submodule(site.parts[0]).weight
            assert isinstance(weight, Tensor)
            bound = math.sqrt(6 / (weight[0].numel() + width))
            yield Prompt(self.prompt_length, width, bound, self.dropout)


@register_method
@dataclass(frozen=True)
class VPTShallow(VPTDeep):
    """Add prompts before the first block, which all blocks process.

    Jia et al., "Visual Prompt Tuning", 2022 (https://arxiv.org/abs/2203.12119). Otherwise
    like :class:`VPTDeep`: not the identity at step 0, not mergeable.

    Attributes:
        prompt_length: Tokens.
        dropout: Probability of dropping an entry of the prompt, in [0, 1).
        layers: The prompts are present from the first to the last of these blocks; ``None`` for
            all.
        exclude: Blocks to leave out.

    >>> import timm
    >>> import lightning_peft as lp
    >>> model = timm.create_model("test_vit", num_classes=3)
    >>> adaptation = lp.adapt(model, lp.VPTShallow(prompt_length=5))
    >>> adaptation.report().adapter
    320
    """

    name: ClassVar[str] = "vpt_shallow"
    family: ClassVar[str] = "prompt"
    formula: ClassVar[str] = "[x; P] before the first block"
    summary: ClassVar[str] = "prompt tokens before the first block"
    reference: ClassVar[str] = "https://arxiv.org/abs/2203.12119"

    def select(self, anatomy: Anatomy, model: nn.Module) -> tuple[Site, ...]:
        """See :meth:`ChildMethod.select`."""
        sites = super().select(anatomy, model)
        return (Site(sites[0].module, "prompt", parts=(_stem(anatomy), sites[-1].module)),)


def _stem(anatomy: Anatomy) -> str:
    """Return the name of the patch embedding, whose fan-in sets the scale of the prompts."""
    return anatomy.roles["convs"][0]
