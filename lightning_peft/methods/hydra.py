"""Hydra: a low-rank update parallel to a linear layer and one after it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_peft.anatomy.targets import resolve
from lightning_peft.errors import MethodError, some
from lightning_peft.methods.base import Layers, Names, Site
from lightning_peft.methods.bottleneck import Bottleneck
from lightning_peft.methods.child import ChildAdapter, ChildMethod
from lightning_peft.methods.features import features_of, is_transposed
from lightning_peft.methods.finite import exact
from lightning_peft.methods.in_weight.part import layer_at, with_parts
from lightning_peft.methods.in_weight.values import needed_value, own_value
from lightning_peft.methods.registry import register_method
from lightning_peft.methods.settings import size_problems

if TYPE_CHECKING:
    from lightning_peft.anatomy import Anatomy

__all__ = ["Hydra"]


class BesideAndBehind(ChildAdapter):
    """``z + beside(x) + behind(z)`` for the input ``x`` and the output ``z`` of its host."""

    def __init__(self, features: tuple[int, int], width: int, **options: Any) -> None:
        super().__init__()
        inputs, outputs = features
        self.beside = Bottleneck(inputs, width, outputs, activation="none", **options)
        self.behind = Bottleneck(outputs, width, activation="none", **options)

    def connect(self, model: nn.Module, site: Site) -> None:
        """See :meth:`ChildAdapter.connect`."""
        model.get_submodule(site.module).register_forward_hook(self.after)

    def after(self, host: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Add both updates to the host's output."""
        if not self.active:
            return output
        return output + (self.beside(args[0]) + self.behind(output)).to(output.dtype)

    def merged(self, host: nn.Module) -> dict[str, Tensor]:
        """See :meth:`ChildAdapter.merged`: ``(I + D C) W + B A`` and the biases with it."""
        weight, bias = needed_value(host, "weight"), own_value(host, "bias")
        if bias is None:
            raise NotImplementedError(f"{type(host).__name__} has no bias to absorb the shift")
        transposed = is_transposed(host)
        old = exact(weight).T if transposed else exact(weight)
        beside, beside_bias = _affine(self.beside)
        behind, behind_bias = _affine(self.behind)
        new = old + behind @ old + beside
        return {
            "weight": new.T if transposed else new,
            "bias": exact(bias) + behind @ exact(bias) + beside_bias + behind_bias,
        }


@register_method
@dataclass(frozen=True)
class Hydra(ChildMethod):
    """Add a low-rank update parallel to the last layer of each branch, and another after it.

    Kim et al., "Hydra: Multi-head Low-rank Adaptation for Parameter Efficient Fine-tuning", 2023
    (https://arxiv.org/abs/2309.06922): ``z + B A x + D C z`` with ``z = W x + b``, on the output
    layers of attention and MLP. ``B`` and ``D`` start at zero, so step 0 is the identity. Merges
    exactly into layers with a bias; then it costs nothing at inference.

    Attributes:
        rank: The rank of each of the two updates; the authors' code uses 2.
        scale: Factor of both updates.
        dropout: Probability of dropping a unit between the two matrices, in [0, 1).
        targets: The adapted layers; ``None`` is the output layers of attention and MLP.
        layers: The adapted blocks, such as ``"last:4"``; ``None`` for all.
        exclude: Modules to leave out.

    >>> import timm
    >>> import lightning_peft as lp
    >>> model = timm.create_model("test_vit", num_classes=3)
    >>> adaptation = lp.adapt(model, lp.Hydra(rank=2))
    >>> adaptation.report().adapter
    9264
    """

    name: ClassVar[str] = "hydra"
    family: ClassVar[str] = "low-rank"
    formula: ClassVar[str] = "z + B A x + D C z, z = W x + b"
    summary: ClassVar[str] = "low-rank updates parallel to and after a layer, mergeable"
    reference: ClassVar[str] = "https://arxiv.org/abs/2309.06922"
    mergeable: ClassVar[bool] = True
    linear: ClassVar[bool] = True

    rank: int = 2
    scale: float = 1.0
    dropout: float = 0.0
    targets: Names = None
    layers: Layers = None
    exclude: Names = None

    def problems(self) -> Iterable[str]:
        """See :meth:`Method.problems`."""
        yield from size_problems(rank=self.rank, scale=self.scale, dropout=self.dropout)

    def select(self, anatomy: Anatomy, model: nn.Module) -> tuple[Site, ...]:
        """See :meth:`ChildMethod.select`."""
        targets = self.targets
        if targets is None:
            places = ("attention-out", "mlp-out")
            targets = tuple(place for place in places if anatomy.roles[place]) or "auto"
        names = resolve(anatomy, model, targets, layers=self.layers, exclude=self.exclude)
        names = with_parts(model, names)
        odd = [n for n in names if not _is_linear(layer_at(model, n))]
        if odd:
            raise MethodError(
                f"{self.name}: expected linear layers, got {some(odd)}. Exclude them; "
                "'lora' serves convolutions as well."
            )
        return tuple(Site(name, "beside and behind") for name in names)

    def in_weight_problem(self, layer: nn.Module) -> str | None:
        """See :meth:`ChildMethod.in_weight_problem`."""
        return "it has no bias to absorb the shift" if layer.bias is None else None

    def build(self, model: nn.Module, sites: tuple[Site, ...]) -> Iterator[ChildAdapter]:
        """See :meth:`ChildMethod.build`."""
        for site in sites:
            features = features_of(layer_at(model, site.module))
            yield BesideAndBehind(features, self.rank, scale=self.scale, dropout=self.dropout)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_transposed(module)


def _affine(bottleneck: Bottleneck) -> tuple[Tensor, Tensor]:
    """Return a linear bottleneck as one matrix and one bias."""
    up, down = bottleneck.up, bottleneck.down
    rows = exact(up.weight) * bottleneck.dropout(torch.ones_like(up.weight[0]))
    matrix = rows @ exact(down.weight)
    bias = rows @ exact(down.bias) + exact(up.bias)
    return bottleneck.scale * matrix, bottleneck.scale * bias
