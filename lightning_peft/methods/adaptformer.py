"""AdaptFormer: a bottleneck parallel to the MLP."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from lightning_peft.anatomy.names import inside
from lightning_peft.errors import MethodError
from lightning_peft.methods.base import Layers, Names, Site
from lightning_peft.methods.bottleneck import Bottleneck, activation_problems
from lightning_peft.methods.child import BesideAdapter, ChildAdapter, ChildMethod
from lightning_peft.methods.features import features_of
from lightning_peft.methods.places import adapted_blocks
from lightning_peft.methods.registry import register_method
from lightning_peft.methods.settings import size_problems

if TYPE_CHECKING:
    from lightning_peft.anatomy import Anatomy

__all__ = ["AdaptFormer"]

_NORM_BEFORE_MLP = re.compile(
    r"norm2|ln_?2|layernorm_after|post_attention_layernorm|ffn_norm|layer\.\d+\.layer_norm"
)
_NORM_BEHIND_MLP = re.compile(r"ResPost|V2Block|V2Layer|Swinv2")


class ParallelToMLP(BesideAdapter):
    """Adds ``bottleneck(x)`` to a block's output, where ``x`` is the input of its last norm."""

    prepend = True  # before prompts on the same block are removed

    def __init__(self, features: int, width: int, **options: Any) -> None:
        super().__init__()
        self.bottleneck = Bottleneck(features, width, **options)
        nn.init.kaiming_normal_(self.bottleneck.down.weight)

    def change(self, x: Tensor) -> Tensor:
        """See :meth:`BesideAdapter.change`."""
        added: Tensor = self.bottleneck(x)
        return added


@register_method
@dataclass(frozen=True)
class AdaptFormer(ChildMethod):
    """Add a bottleneck parallel to each MLP: ``x + MLP(norm(x)) + scale up(relu(down(x)))``.

    Chen et al., "AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition", 2022
    (https://arxiv.org/abs/2205.13535). The bottleneck reads the output of the attention, before the
    norm, and its result is added outside drop-path and layer-scale. ``down`` starts with Kaiming's
    normal distribution, as in the paper (the authors' code draws it uniformly, with a sixth of that
    variance), ``up`` at zero, so step 0 is the identity. Not mergeable.

    Attributes:
        bottleneck: Width of the bottleneck.
        scale: Factor of the bottleneck's output; the paper's 0.1.
        dropout: Probability of dropping a unit of the bottleneck; the paper's 0.1.
        activation: ``"relu"`` as in the paper, ``"gelu"``, ``"quick_gelu"`` or ``"none"``.
        layers: The adapted blocks, such as ``"last:4"``; ``None`` for all.
        exclude: Blocks to leave out.

    >>> import timm
    >>> import lightning_peft as lp
    >>> model = timm.create_model("test_vit", num_classes=3)
    >>> adaptation = lp.adapt(model, lp.AdaptFormer(bottleneck=4))
    >>> adaptation.report().adapter
    3480
    """

    name: ClassVar[str] = "adaptformer"
    family: ClassVar[str] = "bottleneck"
    formula: ClassVar[str] = "x + MLP(norm(x)) + s up(relu(down(x)))"
    summary: ClassVar[str] = "a bottleneck parallel to the MLP"
    reference: ClassVar[str] = "https://arxiv.org/abs/2205.13535"

    bottleneck: int = 64
    scale: float = 0.1
    dropout: float = 0.1
    activation: str = "relu"
    layers: Layers = None
    exclude: Names = None

    def problems(self) -> Iterable[str]:
        """See :meth:`Method.problems`."""
        yield from size_problems(bottleneck=self.bottleneck, scale=self.scale, dropout=self.dropout)
        yield from activation_problems(self.activation)

    def select(self, anatomy: Anatomy, model: nn.Module) -> tuple[Site, ...]:
        """See :meth:`ChildMethod.select`."""
        sites = []
        for block in adapted_blocks(anatomy, model, self.name, self.layers, self.exclude):
            norms = [
                name
                for name in anatomy.roles["norms"]
                if inside(name, (block,)) and _NORM_BEFORE_MLP.search(name[len(block) :])
            ]
            kind = type(model.get_submodule(block)).__name__
            if not norms or _NORM_BEHIND_MLP.search(kind) or not _has_mlp(anatomy, block):
                raise MethodError(
                    f"{self.name}: expected blocks with a norm before their MLP, got {block} "
                    f"({kind}). Methods that fit: 'pfeiffer' or 'houlsby' where there is an MLP, "
                    "'lora', 'ssf', 'norm'."
                )
            sites.append(Site(block, "beside the MLP", parts=(norms[-1],)))
        return tuple(sites)

    def build(self, model: nn.Module, sites: tuple[Site, ...]) -> Iterator[ChildAdapter]:
        """See :meth:`ChildMethod.build`."""
        for site in sites:
            yield ParallelToMLP(
                features_of(model.get_submodule(site.parts[0]))[0],
                self.bottleneck,
                activation=self.activation,
                dropout=self.dropout,
                scale=self.scale,
            )


def _has_mlp(anatomy: Anatomy, block: str) -> bool:
    return any(inside(name, (block,)) for name in anatomy.roles["mlp"])
