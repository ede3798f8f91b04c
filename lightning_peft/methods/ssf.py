"""SSF: scale and shift the features after every layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from lightning_peft.anatomy.targets import resolve
from lightning_peft.anatomy.tree import is_recurrent
from lightning_peft.errors import MethodError
from lightning_peft.methods.base import Layers, Names, Site
from lightning_peft.methods.child import ChildAdapter, ChildMethod
from lightning_peft.methods.features import features_of, is_transposed, spatial_dims
from lightning_peft.methods.finite import exact
from lightning_peft.methods.in_weight.part import layer_at, with_parts
from lightning_peft.methods.in_weight.places import never_called
from lightning_peft.methods.in_weight.values import own_value
from lightning_peft.methods.registry import register_method

if TYPE_CHECKING:
    from lightning_peft.anatomy import Anatomy

__all__ = ["SSF"]

_PLACES = ("all-linear", "norms", "convs")


class ScaleShift(ChildAdapter):
    """``scale * y + shift`` for each feature of its host's output ``y``."""

    def __init__(self, host: nn.Module, std: float, shifts: bool) -> None:
        super().__init__()
        features = features_of(host)[1]
        self.scale = nn.Parameter(torch.empty(features))
        nn.init.normal_(self.scale, 1.0, std)
        self.shift: nn.Parameter | None = None
        if shifts:
            self.shift = nn.Parameter(torch.empty(features))
            nn.init.normal_(self.shift, 0.0, std)
        self.spatial = spatial_dims(host)

    def connect(self, model: nn.Module, site: Site) -> None:
        """See :meth:`ChildAdapter.connect`."""
        model.get_submodule(site.module).register_forward_hook(self.after)

    def after(self, host: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Scale and shift the host's output."""
        if not self.active:
            return output
        assert self.shift is not None
        scale: Tensor = self.scale
        shift: Tensor = self.shift
        behind = output.ndim - 2 if self.spatial is None else self.spatial
        if behind:
            shape = (-1, *(1,) * behind)
            scale, shift = scale.view(shape), shift.view(shape)
        # in half precision a scale near 1 would be rounded to steps of 1/128
        return torch.addcmul(shift, output.to(scale.dtype), scale).to(output.dtype)

    def merged(self, host: nn.Module) -> dict[str, Tensor]:
        """See :meth:`ChildAdapter.merged`: exact, row by row."""
        weight, bias = own_value(host, "weight"), own_value(host, "bias")
        if weight is None or (bias is None and self.shift is not None):
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
        rows = exact(self.scale)
        if isinstance(host, _ConvTransposeNd):  # (in, out of one group, ...)
            rows = rows.view(host.groups, 1, -1).repeat(1, len(weight) // host.groups, 1)
            rows = rows.view(*weight.shape[:2], *(1,) * (weight.ndim - 2))
        elif weight.ndim > 1 and not is_transposed(host):
            rows = rows.view(-1, *(1,) * (weight.ndim - 1))
        values = {"weight": exact(weight) * rows}
        if bias is not None and self.shift is not None:
            values["bias"] = exact(bias) * exact(self.scale) + exact(self.shift)
        return values


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

    >>> import timm
    >>> import lightning_peft as lp
    >>> model = timm.create_model("test_vit", num_classes=3)
    >>> adaptation = lp.adapt(model, lp.SSF())
    >>> adaptation.report().adapter
    7936
    """

    name: ClassVar[str] = "ssf"
    family: ClassVar[str] = "scaling"
    formula: ClassVar[str] = "gamma * y + beta"
    summary: ClassVar[str] = "scale and shift after every layer"
    reference: ClassVar[str] = "https://arxiv.org/abs/2210.08823"
    starts_as_backbone: ClassVar[bool] = False
    mergeable: ClassVar[bool] = True
    linear: ClassVar[bool] = True

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
        # the states of a recurrent layer are no features of one product
        chosen = [n for n in names if not is_recurrent(model.get_submodule(n))]
        chosen = [part for name in chosen for part in _layers(model, name)]
        if not chosen:
            raise MethodError(
                f"{self.name}: expected layers with features to scale, got recurrent layers only. "
                "Methods that fit: 'lora', 'bitfit'."
            )
        read = never_called(model, chosen)
        return tuple(Site(n, _kind(layer_at(model, n), n in read)) for n in chosen)

    def build(self, model: nn.Module, sites: tuple[Site, ...]) -> Iterator[ChildAdapter]:
        """See :meth:`ChildMethod.build`."""
        for site in sites:
            layer = layer_at(model, site.module)
            yield ScaleShift(layer, self.init_std, shifts=site.kind != "scale")


def _layers(model: nn.Module, name: str) -> tuple[str, ...]:
    """Return the parts of an attention module, and any other layer itself."""
    attention = isinstance(model.get_submodule(name), nn.MultiheadAttention)
    return with_parts(model, (name,)) if attention else (name,)


def _kind(layer: nn.Module, read: bool) -> str:
    """Return the kind of change; where a layer is read, only its bias could hold a shift."""
    return "scale" if read and layer.bias is None else "scale and shift"
