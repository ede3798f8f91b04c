"""Bottlenecks after the attention and the MLP: the adapters of Houlsby et al. and Pfeiffer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from lightning_peft.methods.base import Layers, Names, Site
from lightning_peft.methods.bottleneck import Bottleneck, activation_problems
from lightning_peft.methods.child import ChildAdapter, ChildMethod
from lightning_peft.methods.features import features_of, first, spatial_dims, with_first
from lightning_peft.methods.places import outputs_of
from lightning_peft.methods.registry import register_method
from lightning_peft.methods.settings import size_problems

if TYPE_CHECKING:
    from lightning_peft.anatomy import Anatomy

__all__ = ["Houlsby", "Pfeiffer"]


class SerialAdapter(ChildAdapter):
    """``z + bottleneck(z)`` for the output ``z`` of its host, which a layer computes."""

    def __init__(self, layer: nn.Module, width: int, **options: Any) -> None:
        super().__init__()
        self.bottleneck = Bottleneck(features_of(layer)[1], width, **options)
        self.spatial = spatial_dims(layer)

    def connect(self, model: nn.Module, site: Site) -> None:
        """See :meth:`ChildAdapter.connect`."""
        model.get_submodule(site.module).register_forward_hook(self.after)

    def after(self, host: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Add the bottleneck's output to the host's."""
        if not self.active:
            return output
        z = first(output)
        axis = 1 if self.spatial is None else -1 - self.spatial
        change = self.bottleneck(z.movedim(axis, -1)).movedim(-1, axis)
        return with_first(output, z + change.to(z.dtype))


@register_method
@dataclass(frozen=True)
class Houlsby(ChildMethod):
    """Add a bottleneck after each attention and each MLP: ``z + scale up(act(down(z)))``.

    Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", 2019
    (https://arxiv.org/abs/1902.00751). ``up`` starts at zero, so step 0 is the identity (the paper
    starts near it). Not mergeable: at inference it costs two thin layers for each branch.

    Attributes:
        bottleneck: Width of the bottleneck.
        activation: ``"gelu"``, ``"relu"``, ``"quick_gelu"`` or ``"none"``.
        dropout: Probability of dropping a unit of the bottleneck, in [0, 1).
        scale: Factor of the bottleneck's output.
        layers: The adapted blocks, such as ``"last:4"``; ``None`` for all.
        exclude: Modules to leave out.

    >>> import timm
    >>> import lightning_peft as lp
    >>> model = timm.create_model("test_vit", num_classes=3)
    >>> adaptation = lp.adapt(model, lp.Houlsby(bottleneck=4))
    >>> adaptation.report().adapter
    6960
    """

    name: ClassVar[str] = "houlsby"
    family: ClassVar[str] = "bottleneck"
    formula: ClassVar[str] = "z + s up(act(down(z))), after attention and MLP"
    summary: ClassVar[str] = "bottlenecks after attention and MLP"
    reference: ClassVar[str] = "https://arxiv.org/abs/1902.00751"
    branches: ClassVar[tuple[str, ...]] = ("attention", "mlp")

    bottleneck: int = 8
    activation: str = "gelu"
    dropout: float = 0.0
    scale: float = 1.0
    layers: Layers = None
    exclude: Names = None

    def problems(self) -> Iterable[str]:
        """See :meth:`Method.problems`."""
        yield from size_problems(bottleneck=self.bottleneck, dropout=self.dropout, scale=self.scale)
        yield from activation_problems(self.activation)

    def select(self, anatomy: Anatomy, model: nn.Module) -> tuple[Site, ...]:
        """See :meth:`ChildMethod.select`."""
        outputs = outputs_of(
            self.branches, anatomy, model, self.name, layers=self.layers, exclude=self.exclude
        )
        return tuple(Site(name, self.name, parts=(layer,)) for name, layer in outputs.items())

    def build(self, model: nn.Module, sites: tuple[Site, ...]) -> Iterator[ChildAdapter]:
        """See :meth:`ChildMethod.build`."""
        for site in sites:
            yield SerialAdapter(
                model.get_submodule(site.parts[0]),
                self.bottleneck,
                activation=self.activation,
                dropout=self.dropout,
                scale=self.scale,
            )


@register_method
@dataclass(frozen=True)
class Pfeiffer(Houlsby):
    """Add a bottleneck after each MLP, and none after the attention.

    Pfeiffer et al., "AdapterFusion: Non-Destructive Task Composition for Transfer Learning", 2021
    (https://arxiv.org/abs/2005.00247). Half the parameters of :class:`Houlsby`, and otherwise the
    same: the identity at step 0, not mergeable.

    Attributes:
        bottleneck: Width of the bottleneck.
        activation: ``"gelu"``, ``"relu"``, ``"quick_gelu"`` or ``"none"``.
        dropout: Probability of dropping a unit of the bottleneck, in [0, 1).
        scale: Factor of the bottleneck's output.
        layers: The adapted blocks, such as ``"last:4"``; ``None`` for all.
        exclude: Modules to leave out.

    >>> import timm
    >>> import lightning_peft as lp
    >>> model = timm.create_model("test_vit", num_classes=3)
    >>> adaptation = lp.adapt(model, lp.Pfeiffer(bottleneck=4))
    >>> adaptation.report().adapter
    3480
    """

    name: ClassVar[str] = "pfeiffer"
    family: ClassVar[str] = "bottleneck"
    formula: ClassVar[str] = "z + s up(act(down(z))), after the MLP"
    summary: ClassVar[str] = "bottlenecks after the MLP"
    reference: ClassVar[str] = "https://arxiv.org/abs/2005.00247"
    branches: ClassVar[tuple[str, ...]] = ("mlp",)
