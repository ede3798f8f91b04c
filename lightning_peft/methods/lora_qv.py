"""LoRA on the query and value slices of a fused ``qkv``."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_peft.anatomy.targets import resolve
from lightning_peft.errors import MethodError, some
from lightning_peft.methods.base import Layers, Names, Site
from lightning_peft.methods.child import ChildAdapter, ChildMethod
from lightning_peft.methods.features import features_of, is_transposed
from lightning_peft.methods.finite import exact
from lightning_peft.methods.in_weight.part import layer_at, with_parts
from lightning_peft.methods.in_weight.values import needed_value
from lightning_peft.methods.registry import register_method
from lightning_peft.methods.settings import size_problems

if TYPE_CHECKING:
    from lightning_peft.anatomy import Anatomy

__all__ = ["LoRAQV"]

_KEY = re.compile(r"(.*_)?k(ey)?(_.*|proj|lin)?")
_ALONE = re.compile(r"(.*_)?(q(uery)?|v(alue)?|k(ey)?)(_?(proj|lin|linear))?")


class SliceUpdate(ChildAdapter):
    """Adds ``scale B A x`` to slices of its host's output, with an A and a B for each slice."""

    def __init__(
        self, features: tuple[int, int], slices: int, rank: int, scale: float, dropout: float
    ) -> None:
        super().__init__()
        taken = 1 if slices == 1 else 2  # query and value of (query, key, value)
        width = features[1] // slices
        self.a = nn.Parameter(torch.empty(taken, rank, features[0]))
        self.b = nn.Parameter(torch.zeros(taken, width, rank))
        for part in self.a:
            nn.init.kaiming_uniform_(part, a=math.sqrt(5))
        self.rest = features[1] - taken * width
        self.scale = scale
        self.dropout = nn.Dropout(dropout)

    def connect(self, model: nn.Module, site: Site) -> None:
        """See :meth:`ChildAdapter.connect`."""
        model.get_submodule(site.module).register_forward_hook(self.after)

    def after(self, host: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Add the updates to the host's output."""
        if not self.active:
            return output
        x = self.dropout(args[0])
        down, up = self.a.flatten(0, 1).to(x.dtype), self.up().to(output.dtype)
        hidden = F.linear(x, down).flatten(0, -2).to(output.dtype)
        # one pass over the output, whichever slices change
        changed = torch.addmm(output.flatten(0, -2), hidden, up.T, alpha=self.scale)
        return changed.view_as(output)

    def up(self) -> Tensor:
        """Return the slices' B as one matrix for the whole output."""
        if len(self.b) == 1:
            return self.b[0]
        rank = self.b.shape[-1]
        query, value = F.pad(self.b[0], (0, rank, 0, self.rest)), F.pad(self.b[1], (rank, 0))
        return torch.cat([query, value])

    def merged(self, host: nn.Module) -> dict[str, Tensor]:
        """See :meth:`ChildAdapter.merged`: exact."""
        kept = self.dropout(torch.ones_like(self.a[0, 0]))
        downs = exact(self.a * kept)
        changes = [self.scale * b @ a for a, b in zip(downs, exact(self.b), strict=True)]
        if len(changes) > 1:
            changes.insert(1, changes[0].new_zeros(self.rest, changes[0].shape[1]))
        change = torch.cat(changes)
        return {
            "weight": exact(needed_value(host, "weight"))
            + (change.T if is_transposed(host) else change)
        }


@register_method
@dataclass(frozen=True)
class LoRAQV(ChildMethod):
    """Add LoRA to query and value only, even if both are slices of one fused ``qkv`` layer.

    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2022
    (https://arxiv.org/abs/2106.09685) adapt query and value; ``lp.LoRA(targets="qkv")`` on a fused
    layer has one ``A`` for query, key and value together instead. ``B`` starts at zero, so step 0
    is the identity. Merges exactly; then it costs nothing at inference.

    Attributes:
        rank: The rank of each update. In a narrower layer they have the rank of its smaller side,
            with the same factor ``alpha / rank``.
        alpha: An update is scaled by ``alpha / rank``; ``None`` means ``alpha = rank``.
        dropout: Probability of dropping an entry of an update's input, in [0, 1).
        layers: The adapted blocks, such as ``"last:4"``; ``None`` for all.
        exclude: Modules to leave out.

    >>> import timm
    >>> import lightning_peft as lp
    >>> model = timm.create_model("test_vit", num_classes=3)
    >>> adaptation = lp.adapt(model, lp.LoRAQV(rank=4))
    >>> adaptation.report().adapter
    6144
    """

    name: ClassVar[str] = "lora_qv"
    family: ClassVar[str] = "low-rank"
    formula: ClassVar[str] = "W + (alpha / r) B A, for query and value"
    summary: ClassVar[str] = "low-rank updates of query and value, fused or not"
    reference: ClassVar[str] = "https://arxiv.org/abs/2106.09685"
    mergeable: ClassVar[bool] = True
    linear: ClassVar[bool] = True
    of_weight: ClassVar[bool] = True

    rank: int = 8
    alpha: float | None = None
    dropout: float = 0.0
    layers: Layers = None
    exclude: Names = None

    def problems(self) -> Iterable[str]:
        """See :meth:`Method.problems`."""
        yield from size_problems(rank=self.rank, dropout=self.dropout)
        if self.alpha is not None and not self.alpha > 0:
            yield f"expected alpha to be positive, or None for alpha = rank, got {self.alpha!r}"

    def select(self, anatomy: Anatomy, model: nn.Module) -> tuple[Site, ...]:
        """See :meth:`ChildMethod.select`."""
        linear = [
            name
            for name in anatomy.roles["qkv"]
            if isinstance(model.get_submodule(name), nn.Linear | nn.MultiheadAttention)
            or is_transposed(model.get_submodule(name))
        ]
        wanted = [n for n in linear if not _KEY.fullmatch(n.rpartition(".")[2]) or _is_fused(n)]
        if not wanted:
            raise MethodError(
                f"{self.name}: expected attention with linear query, key and value, found none in "
                f"this {type(model).__name__}. Methods that fit: 'lora', 'ssf', 'norm', 'bitfit'."
            )
        names = with_parts(
            model, resolve(anatomy, model, wanted, layers=self.layers, exclude=self.exclude)
        )
        names = tuple(n for n in names if not _KEY.fullmatch(n.rpartition(".")[2]) or _is_fused(n))
        uneven = [
            name for name in names if _is_fused(name) and features_of(layer_at(model, name))[1] % 3
        ]
        if uneven:
            raise MethodError(
                f"{self.name}: expected fused layers of query, key and value of one size, got "
                f"{some(uneven)}."
            )
        kinds = {
            name: f"query and value of rank {rank}"
            for name in names
            if (rank := _rank_at(model, name, self.rank)) < self.rank
        }
        return tuple(Site(name, kinds.get(name, "query and value")) for name in names)

    def build(self, model: nn.Module, sites: tuple[Site, ...]) -> Iterator[ChildAdapter]:
        """See :meth:`ChildMethod.build`."""
        scale = 1.0 if self.alpha is None else self.alpha / self.rank
        for site in sites:
            features = features_of(layer_at(model, site.module))
            rank = _rank_at(model, site.module, self.rank)
            slices = 3 if _is_fused(site.module) else 1
            yield SliceUpdate(features, slices, rank, scale, self.dropout)


def _rank_at(model: nn.Module, name: str, rank: int) -> int:
    """Return a rank, or the smaller side of a layer if it is below."""
    return min(rank, *features_of(layer_at(model, name)))


def _is_fused(name: str) -> bool:
    return not _ALONE.fullmatch(name.rpartition(".")[2])
