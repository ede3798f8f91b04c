"""SSF: scale and shift the features after every layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_peft.anatomy.targets import resolve
from lightning_peft.methods.base import Layers, Names, Site
from lightning_peft.methods.child import (
    ChildAdapter,
    ChildMethod,
    channels_last,
    features_of,
    is_transposed,
)
from lightning_peft.methods.registry import register_method

if TYPE_CHECKING:
    from lightning_peft.anatomy import Anatomy

__all__ = ["SSF"]

_PLACES = ("all-linear", "norms", "convs")


class ScaleShift(ChildAdapter):
    """``scale * y + shift`` for each feature of its host's output ``y``."""

    def __init__(self, host: nn.Module, std: float) -> None:
        super().__init__()
        features = features_of(host)[1]
        self.scale = nn.Parameter(torch.empty(features))
        self.shift = nn.Parameter(torch.empty(features))
        nn.init.normal_(self.scale, 1.0, std)
        nn.init.normal_(self.shift, 0.0, std)
        self.last = channels_last(host)

    def connect(self, model: nn.Module, site: Site) -> None:
        """See :meth:`ChildAdapter.connect`."""
        model.get_submodule(site.module).register_forward_hook(self.after)

    def after(self, host: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Scale and shift the host's output."""
        if not self.active:
            return output
        scale: Tensor = self.scale
        shift: Tensor = self.shift
        if not self.last:
            shape = (-1, *(1,) * (output.ndim - 2))
            scale, shift = scale.view(shape), shift.view(shape)
        # in half precision a scale near 1 would be rounded to steps of 1/128
        return torch.addcmul(shift, output.to(scale.dtype), scale).to(output.dtype)

    def merged(self, host: nn.Module) -> dict[str, Tensor]:
        """See :meth:`ChildAdapter.merged`: exact, row by row."""
        weight, bias = host._parameters.get("weight"), host._parameters.get("bias")
        if weight is None or bias is None:
            raise NotImplementedError(
                f"{type(host).__name__} has no {'weight' if weight is None else 'bias'} to absorb "
                f"the {'scale' if weight is None else 'shift'}"
            )
        if isinstance(getattr(host, "act", None), nn.Module) and not isinstance(
            host.act, nn.Identity
        ):
            raise NotImplementedError(
                f"{type(host).__name__} ends in an activation, and the scale comes after it"
            )
        rows = self.scale.float()
        if weight.ndim > 1:
            transposed = is_transposed(host)
            rows = rows if transposed else rows.view(-1, *(1,) * (weight.ndim - 1))
        return {
            "weight": weight.float() * rows,
            "bias": bias.float() * self.scale.float() + self.shift.float(),
        }


@register_method
@dataclass(frozen=True)
class SSF(ChildMethod):
    """Scale and shift the output of every linear layer, norm and convolution.

    Lian et al., "Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning", 2022
    (https://arxiv.org/abs/2210.08823): ``y <- gamma * y + beta``. As in the paper, gamma is drawn
    from N(1, 0.02) and beta from N(0, 0.02), so step 0 is *not* the identity; with ``init_std=0``
    it is. Merges exactly into layers with a bias; then it costs nothing at inference.

    Attributes:
        targets: The adapted layers; ``None`` is every linear layer of the blocks, every norm and
            every convolution.
        layers: The adapted blocks, such as ``"last:4"``; ``None`` for everything.
        exclude: Modules to leave out.
        init_std: Standard deviation of the initial values.
    """

    name: ClassVar[str] = "ssf"
    family: ClassVar[str] = "scaling"
    formula: ClassVar[str] = "gamma * y + beta"
    summary: ClassVar[str] = "scale and shift after every layer"
    reference: ClassVar[str] = "https://arxiv.org/abs/2210.08823"
    mergeable: ClassVar[bool] = True

    targets: Names = None
    layers: Layers = None
    exclude: Names = None
    init_std: float = 0.02

    def problems(self) -> Iterable[str]:
        """See :meth:`Method.problems`."""
        if not isinstance(self.init_std, int | float) or not self.init_std >= 0:
            yield f"expected init_std to be 0 or positive, got {self.init_std!r}"

    def select(self, anatomy: Anatomy, model: nn.Module) -> tuple[Site, ...]:
        """See :meth:`ChildMethod.select`."""
        targets = self.targets
        if targets is None:
            targets = tuple(place for place in _PLACES if anatomy.roles[place]) or "auto"
        names = resolve(anatomy, model, targets, layers=self.layers, exclude=self.exclude)
        return tuple(Site(name, "scale and shift") for name in names)

    def build(self, model: nn.Module, sites: tuple[Site, ...]) -> Iterator[ChildAdapter]:
        """See :meth:`ChildMethod.build`."""
        for site in sites:
            yield ScaleShift(model.get_submodule(site.module), self.init_std)
