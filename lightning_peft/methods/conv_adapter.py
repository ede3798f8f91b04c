"""Conv-Adapter: small convolutions parallel to those of a convolutional network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_peft.anatomy.names import inside
from lightning_peft.anatomy.targets import resolve
from lightning_peft.errors import MethodError
from lightning_peft.methods.base import Layers, Names, Site
from lightning_peft.methods.child import ChildAdapter, ChildMethod
from lightning_peft.methods.registry import register_method
from lightning_peft.methods.settings import size_problems

if TYPE_CHECKING:
    from lightning_peft.anatomy import Anatomy

__all__ = ["ConvAdapter"]


class BesideConv(ChildAdapter):
    """``y + alpha * pointwise(act(conv(x)))`` for the input ``x`` and output ``y`` of its host."""

    def __init__(self, host: nn.Conv2d, reduction: int) -> None:
        super().__init__()
        width = max(1, host.in_channels // reduction)
        while host.in_channels % width:  # as many groups as channels, which must divide the host's
            width -= 1
        self.conv = nn.Conv2d(
            host.in_channels,
            width,
            host.kernel_size,  # type: ignore[arg-type]
            stride=host.stride,  # type: ignore[arg-type]
            padding=host.padding,  # type: ignore[arg-type]
            dilation=host.dilation,  # type: ignore[arg-type]
            groups=width,
            padding_mode=host.padding_mode,
        )
        self.act = nn.ReLU()
        self.pointwise = nn.Conv2d(width, host.out_channels, 1)
        self.alpha = nn.Parameter(torch.ones(1, host.out_channels, 1, 1))
        assert self.pointwise.bias is not None
        nn.init.zeros_(self.pointwise.weight)
        nn.init.zeros_(self.pointwise.bias)

    def connect(self, model: nn.Module, site: Site) -> None:
        """See :meth:`ChildAdapter.connect`."""
        model.get_submodule(site.module).register_forward_hook(self.after)

    def after(self, host: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Add the adapter's output to the host's."""
        if not self.active:
            return output
        x = args[0].to(self.alpha.dtype)
        change = self.alpha * self.pointwise(self.act(self.conv(x)))
        return output + change.to(output.dtype)


@register_method
@dataclass(frozen=True)
class ConvAdapter(ChildMethod):
    """Add a grouped and a pointwise convolution parallel to each spatial convolution of the blocks.

    Chen et al., "Conv-Adapter: Exploring Parameter Efficient Transfer Learning for ConvNets", 2022
    (https://arxiv.org/abs/2208.07463), the variant parallel to the convolution: ``y + alpha *
    pointwise(relu(conv(x)))``, kernel and stride those of the host. The pointwise convolution
    starts at zero (the authors' code does not), so step 0 is the identity. The sum is taken at the
    convolution's output, before the norm that follows. Not mergeable.

    Attributes:
        reduction: Channels of the host divided by those of the adapter; the paper's 8.
        layers: The adapted blocks, such as ``"last:4"``; ``None`` for all.
        exclude: Modules to leave out.

    >>> import timm
    >>> import lightning_peft as lp
    >>> model = timm.create_model("test_resnet", num_classes=3)
    >>> lp.adapt(model, lp.ConvAdapter(reduction=4)).report().adapter
    14200
    """

    name: ClassVar[str] = "conv_adapter"
    family: ClassVar[str] = "bottleneck"
    formula: ClassVar[str] = "y + alpha * pointwise(relu(conv(x)))"
    summary: ClassVar[str] = "small convolutions parallel to those of the blocks"
    reference: ClassVar[str] = "https://arxiv.org/abs/2208.07463"

    reduction: int = 8
    layers: Layers = None
    exclude: Names = None

    def problems(self) -> Iterable[str]:
        """See :meth:`Method.problems`."""
        yield from size_problems(reduction=self.reduction)

    def select(self, anatomy: Anatomy, model: nn.Module) -> tuple[Site, ...]:
        """See :meth:`ChildMethod.select`."""
        names = [
            name
            for name, module in model.named_modules()
            if type(module) is nn.Conv2d
            and max(module.kernel_size) > 1
            and anatomy.layer_of(name) is not None
            and not inside(name, anatomy.head)
        ]
        if not names:
            raise MethodError(
                f"{self.name}: expected blocks with spatial convolutions, found none in this "
                f"{type(model).__name__}. Methods that fit transformers: 'adaptformer', 'houlsby', "
                "'lora'."
            )
        names = list(resolve(anatomy, model, names, layers=self.layers, exclude=self.exclude))
        return tuple(Site(name, "beside") for name in names)

    def build(self, model: nn.Module, sites: tuple[Site, ...]) -> Iterator[ChildAdapter]:
        """See :meth:`ChildMethod.build`."""
        for site in sites:
            host = model.get_submodule(site.module)
            assert isinstance(host, nn.Conv2d)
            yield BesideConv(host, self.reduction)
