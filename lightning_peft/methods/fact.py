"""FacT: one factorised update for all weights of a vision transformer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_peft.anatomy.targets import resolve
from lightning_peft.errors import MethodError, some
from lightning_peft.methods.base import Adapter, Layers, Names, Site
from lightning_peft.methods.child import ChildAdapter, ChildHandle, ChildMethod
from lightning_peft.methods.features import features_of, is_transposed
from lightning_peft.methods.finite import exact
from lightning_peft.methods.in_weight.part import layer_at, with_parts
from lightning_peft.methods.in_weight.values import needed_value
from lightning_peft.methods.registry import register_method
from lightning_peft.methods.settings import size_problems

if TYPE_CHECKING:
    from lightning_peft.anatomy import Anatomy

__all__ = ["FacTTK", "FacTTT"]


class Factors(ChildAdapter):
    """The factors of all sites: ``U`` (r, D), ``V`` (D, r) and, for Tucker, the core and ``P``.

    It is a child of the backbone and has no effect by itself.
    """

    def __init__(self, width: int, rank: int, matrices: int, tucker: bool) -> None:
        super().__init__()
        self.u = nn.Linear(width, rank, bias=False)
        self.v = nn.Linear(rank, width, bias=False)
        nn.init.zeros_(self.v.weight)
        if tucker:
            self.core = nn.Parameter(torch.empty(rank, rank, rank))
            self.p = nn.Parameter(torch.empty(matrices, rank))
            nn.init.xavier_uniform_(self.core)
            nn.init.xavier_uniform_(self.p)

    def connect(self, model: nn.Module, site: Site) -> None:
        """See :meth:`ChildAdapter.connect`: the sites have the hooks."""

    def merged(self, host: nn.Module) -> dict[str, Tensor]:
        """See :meth:`ChildAdapter.merged`: the sites change the weights."""
        return {}


class SharedUpdate(ChildAdapter):
    """``scale V S_j U`` for each of the D x D blocks ``j`` of its host's weight."""

    def __init__(
        self,
        factors: Factors,
        host: nn.Module,
        numbers: range,
        scale: float,
        dropout: float,
        own: bool,
    ) -> None:
        super().__init__()
        self.__dict__["_factors"] = (factors,)  # a reference, not a child: its names exist once
        self.numbers = (numbers.start, numbers.stop)
        self.tall = features_of(host)[1] >= features_of(host)[0]
        self.scale = scale
        self.dropout = nn.Dropout(dropout)
        rank = factors.u.out_features
        if own:
            self.inner = nn.Parameter(torch.empty(len(numbers), rank, rank))
            nn.init.uniform_(self.inner, -(rank**-0.5), rank**-0.5)

    def connect(self, model: nn.Module, site: Site) -> None:
        """See :meth:`ChildAdapter.connect`."""
        model.get_submodule(site.module).register_forward_hook(self.after)

    @property
    def factors(self) -> Factors:
        """The factors shared with the other sites."""
        found: Factors = self.__dict__["_factors"][0]
        return found

    def matrices(self) -> Tensor:
        """Return ``S_j`` for the blocks of this site, shape (blocks, r, r)."""
        if hasattr(self, "inner"):
            return self.inner
        chosen = self.factors.p[slice(*self.numbers)]
        return torch.einsum("abc,jc->jba", self.factors.core, chosen)

    def after(self, host: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Add the update to the host's output."""
        if not self.active:
            return output
        inner, u, v = self.matrices(), self.factors.u.weight, self.factors.v.weight
        x: Tensor = args[0].to(u.dtype)
        if self.tall:  # blocks of rows: each has its own outputs
            hidden = self.dropout(torch.einsum("...d,rd->...r", x, u))
            hidden = torch.einsum("...r,jsr->...js", hidden, inner)
            change = torch.einsum("...js,ds->...jd", hidden, v).flatten(-2)
        else:  # blocks of columns: each has its own inputs
            blocks = x.unflatten(-1, (len(inner), -1))
            hidden = self.dropout(torch.einsum("...jd,rd->...jr", blocks, u))
            hidden = torch.einsum("...jr,jsr->...s", hidden, inner)
            change = torch.einsum("...s,ds->...d", hidden, v)
        return output + (self.scale * change).to(output.dtype)

    def merged(self, host: nn.Module) -> dict[str, Tensor]:
        """See :meth:`ChildAdapter.merged`: exact."""
        u, v = exact(self.factors.u.weight), exact(self.factors.v.weight)
        kept = self.dropout(torch.ones_like(u[:, :1]))
        blocks = self.scale * torch.einsum("ds,jsr,re->jde", v, exact(self.matrices()), kept * u)
        change = torch.cat(list(blocks), 0 if self.tall else 1)
        if is_transposed(host):
            change = change.T
        return {"weight": exact(needed_value(host, "weight")) + change}


@dataclass(frozen=True)
class _FacT(ChildMethod):
    reference: ClassVar[str] = "https://arxiv.org/abs/2212.03145"
    mergeable: ClassVar[bool] = True
    linear: ClassVar[bool] = True
    of_weight: ClassVar[bool] = True

    rank: int = 16
    scale: float = 1.0
    dropout: float = 0.1
    targets: Names = "auto"
    layers: Layers = None
    exclude: Names = None

    @property
    @abstractmethod
    def tucker(self) -> bool:
        """Whether the cores come from one Tucker core."""

    def problems(self) -> Iterable[str]:
        """See :meth:`Method.problems`."""
        yield from size_problems(rank=self.rank, scale=self.scale, dropout=self.dropout)

    def select(self, anatomy: Anatomy, model: nn.Module) -> tuple[Site, ...]:
        """See :meth:`ChildMethod.select`."""
        names = resolve(
            anatomy, model, self.targets or "auto", layers=self.layers, exclude=self.exclude
        )
        names = with_parts(model, names)
        sizes = {}
        for name in names:
            module = layer_at(model, name)
            linear = isinstance(module, nn.Linear) or is_transposed(module)
            sizes[name] = features_of(module) if linear else (0, 0)
        width = min(min(size) for size in sizes.values())
        odd = [
            name
            for name, size in sizes.items()
            if not width or min(size) != width or max(size) % width
        ]
        if odd:
            raise MethodError(
                f"{self.name}: expected linear layers of one width D that are D x D, D x nD or "
                f"nD x D, got {some(odd, 4)}. Exclude "
                "them, or use 'lora', which shares nothing."
            )
        if self.rank > width:
            raise MethodError(
                f"{self.name}: expected a rank no larger than the width {width}, got {self.rank}."
            )
        return tuple(Site(name, "shared update") for name in names)

    def build(self, model: nn.Module, sites: tuple[Site, ...]) -> Iterator[ChildAdapter]:
        """See :meth:`ChildMethod.build`: the shared factors come first."""
        sizes = [features_of(layer_at(model, site.module)) for site in sites]
        width = min(min(size) for size in sizes)
        counts = [max(size) // width for size in sizes]
        factors = Factors(width, self.rank, sum(counts), self.tucker)
        yield factors
        start = 0
        for site, count in zip(sites, counts, strict=True):
            numbers = range(start, start + count)
            start += count
            host = layer_at(model, site.module)
            yield SharedUpdate(
                factors, host, numbers, self.scale, self.dropout, own=not self.tucker
            )

    def inject(self, model: nn.Module, sites: tuple[Site, ...]) -> None:
        """See :meth:`Method.inject`."""
        self.attach(model, (Site("", "shared factors"), *sites), list(self.build(model, sites)))

    def adapters(self, model: nn.Module, sites: tuple[Site, ...]) -> list[Adapter]:
        """See :meth:`Method.adapters`."""
        return [*super().adapters(model, sites), ChildHandle(model, "", self.key)]


@register_method
@dataclass(frozen=True)
class FacTTT(_FacT):
    """Update all weights by one tensor train: ``W_j + scale V S_j U``, U and V shared by all.

    Jie and Deng, "FacT: Factor-Tuning for Lightweight Adaptation on Vision Transformer", 2023
    (https://arxiv.org/abs/2212.03145). A weight of D x nD or nD x D counts as n matrices. ``V``
    starts at zero, so step 0 is the identity. Merges exactly; then it costs nothing at inference.

    Attributes:
        rank: Size r of the inner matrices; the paper's 4 to 16.
        scale: Factor of the update; the paper chooses it from 0.01 to 100 for each task.
        dropout: Probability of dropping an entry between ``U`` and ``S``; the paper's 0.1.
        targets: The adapted layers; ``"auto"`` is every linear layer of the blocks.
        layers: The adapted blocks, such as ``"last:4"``; ``None`` for all.
        exclude: Modules to leave out.

    >>> import timm
    >>> import lightning_peft as lp
    >>> model = timm.create_model("test_vit", num_classes=3)
    >>> adaptation = lp.adapt(model, lp.FacTTT(rank=4))
    >>> adaptation.report().adapter
    1472
    """

    name: ClassVar[str] = "fact_tt"
    family: ClassVar[str] = "low-rank"
    formula: ClassVar[str] = "W_j + s V S_j U, U and V shared"
    summary: ClassVar[str] = "one tensor-train update for all weights"
    tucker: ClassVar[bool] = False


@register_method
@dataclass(frozen=True)
class FacTTK(_FacT):
    """Update all weights by one Tucker tensor: as :class:`FacTTT`, with the ``S_j`` from one core.

    Jie and Deng, "FacT: Factor-Tuning for Lightweight Adaptation on Vision Transformer", 2023
    (https://arxiv.org/abs/2212.03145). ``S_j = (C x_3 p_j)^T`` with ``C`` (r, r, r) and one ``p_j``
    (r) a matrix. ``V`` starts at zero, so step 0 is the identity. Merges exactly.

    Attributes:
        rank: Size r of the core; the paper's 16 and 32.
        scale: Factor of the update; the paper chooses it from 0.01 to 100 for each task.
        dropout: Probability of dropping an entry between ``U`` and ``S``; the paper's 0.1.
        targets: The adapted layers; ``"auto"`` is every linear layer of the blocks.
        layers: The adapted blocks, such as ``"last:4"``; ``None`` for all.
        exclude: Modules to leave out.

    >>> import timm
    >>> import lightning_peft as lp
    >>> model = timm.create_model("test_vit", num_classes=3)
    >>> adaptation = lp.adapt(model, lp.FacTTK(rank=4))
    >>> adaptation.report().adapter
    816
    """

    name: ClassVar[str] = "fact_tk"
    family: ClassVar[str] = "low-rank"
    formula: ClassVar[str] = "W_j + s V (C x_3 p_j)^T U, all but p_j shared"
    summary: ClassVar[str] = "one Tucker update for all weights"
    tucker: ClassVar[bool] = True
