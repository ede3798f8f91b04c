"""Last blocks: train the end of the backbone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from lightning_peft.anatomy.names import inside
from lightning_peft.errors import MethodError
from lightning_peft.methods.base import Method, Plan, Site
from lightning_peft.methods.registry import register_method

if TYPE_CHECKING:
    from lightning_peft.anatomy import Anatomy

__all__ = ["LastBlocks"]


@register_method
@dataclass(frozen=True)
class LastBlocks(Method):
    """Train the last blocks of the backbone, and the layers after them, in full.

    Yosinski et al., "How transferable are features in deep neural networks?", 2014
    (https://arxiv.org/abs/1411.1792). Everything before the blocks stays frozen, so no gradient is
    computed there. The layers after the blocks (a final norm, a pooler) are those that the model
    registers after them.

    Attributes:
        n: Number of blocks, counted from the end.

    >>> import timm
    >>> import lightning_peft as lp
    >>> model = timm.create_model("test_vit", num_classes=3)
    >>> adaptation = lp.adapt(model, lp.LastBlocks(n=1))
    >>> sorted({name.rpartition(".")[0] for name in adaptation.trained_names()})[:3]
    ['blocks.5.attn.proj', 'blocks.5.attn.qkv', 'blocks.5.mlp.fc1']
    """

    name: ClassVar[str] = "last_blocks"
    family: ClassVar[str] = "selective"
    formula: ClassVar[str] = "the last n blocks"
    summary: ClassVar[str] = "train the last n blocks in full"
    reference: ClassVar[str] = "https://arxiv.org/abs/1411.1792"
    changes_backbone: ClassVar[bool] = True
    keeps_original: ClassVar[bool] = False

    n: int = 1

    def problems(self) -> Iterable[str]:
        """See :meth:`Method.problems`."""
        if not isinstance(self.n, int) or isinstance(self.n, bool) or self.n < 1:
            yield f"expected n to be a whole number of blocks from 1, got {self.n!r}"

    def plan(self, anatomy: Anatomy, model: nn.Module) -> Plan:
        """See :meth:`Method.plan`."""
        blocks = anatomy.blocks
        if not blocks:
            raise MethodError(
                "last_blocks: expected a backbone with repeated blocks, found none in "
                f"{type(model).__name__}. Use 'full', or 'lora' with targets of your own."
            )
        if self.n > len(blocks):
            raise MethodError(
                f"last_blocks: expected n of at most {len(blocks)}, the number of blocks, "
                f"got {self.n}. To train everything, use 'full'."
            )
        chosen = blocks[-self.n :]
        names = [name for name, _ in model.named_parameters()]
        in_blocks = [i for i, name in enumerate(names) if inside(name, blocks)]
        after = set(names[in_blocks[-1] + 1 :])
        train = tuple(
            name
            for name in names
            if (inside(name, chosen) or name in after) and not inside(name, anatomy.head)
        )
        return Plan(sites=tuple(Site(name, "block") for name in chosen), train=train)
