"""RepAdapter: linear bottlenecks before the attention and the MLP, which merge into them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_peft.anatomy.targets import resolve
from lightning_peft.errors import MethodError, some
from lightning_peft.methods.base import Layers, Names, Site
from lightning_peft.methods.child import ChildAdapter, ChildMethod
from lightning_peft.methods.features import features_of, is_transposed
from lightning_peft.methods.finite import exact
from lightning_peft.methods.in_weight.part import layer_at, with_parts
from lightning_peft.methods.in_weight.places import never_called
from lightning_peft.methods.in_weight.values import own_value
from lightning_peft.methods.registry import register_method
from lightning_peft.methods.settings import size_problems

if TYPE_CHECKING:
    from lightning_peft.anatomy import Anatomy

__all__ = ["RepAdapter"]


class LinearBefore(ChildAdapter):
    """``x + scale (up(dropout(down(x))))`` for the input ``x`` of its host; ``up`` is in groups."""

    def __init__(
        self, features: int, width: int, groups: int, scale: float, dropout: float
    ) -> None:
        super().__init__()
        self.down = nn.Linear(features, width)
        self.up_weight = nn.Parameter(torch.zeros(groups, features // groups, width // groups))
        self.up_bias = nn.Parameter(torch.zeros(features))
        self.dropout = nn.Dropout(dropout)
        self.scale = scale
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def connect(self, model: nn.Module, site: Site) -> None:
        """See :meth:`ChildAdapter.connect`."""
        model.get_submodule(site.module).register_forward_pre_hook(self.before)

    def before(self, host: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Change the host's input; for an attention module query, key and value at once."""
        if not self.active:
            return None
        x: Tensor = args[0]
        hidden = self.dropout(self.down(x.to(self.down.weight.dtype)))
        hidden = hidden.unflatten(-1, (len(self.up_weight), -1))
        change = torch.einsum("...gh,gfh->...gf", hidden, self.up_weight.to(hidden.dtype))
        new = x + (self.scale * (change.flatten(-2) + self.up_bias)).to(x.dtype)
        return tuple(new if arg is x else arg for arg in args)

    def merged(self, host: nn.Module) -> dict[str, Tensor]:
        """See :meth:`ChildAdapter.merged`: ``W (I + scale B A)`` and ``b + scale W (B a + b)``."""
        kind = "in_proj_" if isinstance(host, nn.MultiheadAttention) else ""
        weight, bias = own_value(host, f"{kind}weight"), own_value(host, f"{kind}bias")
        if weight is None:
            raise NotImplementedError(
                f"{type(host).__name__} reads a weight without a bias to absorb the shift"
            )
        if bias is None:
            raise NotImplementedError(f"{type(host).__name__} has no bias to absorb the shift")
        up = torch.block_diag(*exact(self.up_weight))
        up = up * self.dropout(torch.ones_like(up[0]))
        matrix = self.scale * up @ exact(self.down.weight)
        shift = self.scale * (up @ exact(self.down.bias) + exact(self.up_bias))
        old = exact(weight)
        if is_transposed(host):
            new = old + matrix.T @ old
            return {"weight": new, "bias": exact(bias) + shift @ old}
        return {f"{kind}weight": old + old @ matrix, f"{kind}bias": exact(bias) + old @ shift}


@register_method
@dataclass(frozen=True)
class RepAdapter(ChildMethod):
    """Add a linear bottleneck before each attention and each MLP: ``x + scale B(A x + a) + b``.

    Luo et al., "Towards Efficient Visual Adaption via Structural Re-parameterization", 2023
    (https://arxiv.org/abs/2302.08106). It is after the norm, before ``qkv`` and before the first
    layer of the MLP; ``B`` is in groups and starts at zero, so step 0 is the identity. Merges
    exactly into layers with a bias; then it costs nothing at inference. If query, key and value
    are separate layers, each has its own adapter.

    Attributes:
        bottleneck: Width of the bottleneck.
        groups: Groups of ``B``; the width and the features must be multiples.
        scale: Factor of the bottleneck's output; the paper chooses it from 0.1 to 10 for each task.
        dropout: Probability of dropping a unit of the bottleneck; the paper's 0.1.
        layers: The adapted blocks, such as ``"last:4"``; ``None`` for all.
        exclude: Modules to leave out.

    >>> import timm
    >>> import lightning_peft as lp
    >>> model = timm.create_model("test_vit", num_classes=3)
    >>> adaptation = lp.adapt(model, lp.RepAdapter(bottleneck=4))
    >>> adaptation.report().adapter
    5424
    """

    name: ClassVar[str] = "repadapter"
    family: ClassVar[str] = "bottleneck"
    formula: ClassVar[str] = "f(x + s (B (A x + a) + b))"
    summary: ClassVar[str] = "linear bottlenecks before attention and MLP, mergeable"
    reference: ClassVar[str] = "https://arxiv.org/abs/2302.08106"
    mergeable: ClassVar[bool] = True
    linear: ClassVar[bool] = True

    bottleneck: int = 8
    groups: int = 2
    scale: float = 1.0
    dropout: float = 0.1
    layers: Layers = None
    exclude: Names = None

    def problems(self) -> Iterable[str]:
        """See :meth:`Method.problems`."""
        yield from size_problems(
            bottleneck=self.bottleneck, groups=self.groups, scale=self.scale, dropout=self.dropout
        )
        sizes = (self.bottleneck, self.groups)
        if all(isinstance(n, int) and n > 0 for n in sizes) and self.bottleneck % self.groups:
            yield (
                f"expected bottleneck to be a multiple of groups ({self.groups}), "
                f"got {self.bottleneck}"
            )

    def select(self, anatomy: Anatomy, model: nn.Module) -> tuple[Site, ...]:
        """See :meth:`ChildMethod.select`."""
        places = tuple(place for place in ("qkv", "mlp-in") if anatomy.roles[place])
        if not places:
            raise MethodError(
                f"{self.name}: expected attention or an MLP of linear layers, found none in this "
                f"{type(model).__name__}. Methods that fit: 'lora', 'ssf', 'norm', 'bitfit'."
            )
        names = resolve(anatomy, model, places, layers=self.layers, exclude=self.exclude)
        odd = [n for n in names if features_of(model.get_submodule(n))[0] % self.groups]
        convs = [n for n in names if isinstance(model.get_submodule(n), nn.Conv2d)]
        if odd or convs:
            raise MethodError(
                f"{self.name}: expected linear layers with a multiple of {self.groups} features, "
                f"got {some(odd or convs)}. Exclude them, or use groups=1."
            )
        names = tuple(part for name in names for part in _layers(model, name))
        read = never_called(model, names)
        sites = []
        for name in names:
            module = layer_at(model, name)
            # what is read past its module has its input one level above
            around = name in read and getattr(module, "bias", None) is None
            host = name.rpartition(".")[0] if around else name
            sites.append(Site(host, "before", parts=(name,)))
        return tuple(sites)

    def build(self, model: nn.Module, sites: tuple[Site, ...]) -> Iterator[ChildAdapter]:
        """See :meth:`ChildMethod.build`."""
        for site in sites:
            features = features_of(layer_at(model, site.parts[0]))[0]
            yield LinearBefore(features, self.bottleneck, self.groups, self.scale, self.dropout)


def _layers(model: nn.Module, name: str) -> tuple[str, ...]:
    """Return the one part of an attention module whose bias can absorb a shift, or the name."""
    module = model.get_submodule(name)
    fused = isinstance(module, nn.MultiheadAttention) and module.in_proj_bias is not None
    parts = with_parts(model, (name,)) if fused else ()
    return parts if len(parts) == 1 else (name,)
