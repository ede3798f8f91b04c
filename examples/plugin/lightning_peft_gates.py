"""A method in its own package: one trained gate for each branch of each block.

After ``pip install examples/plugin`` it can be used everywhere by its name:
``lp.PEFT("gates")``, ``lp.list_methods()``, ``lightning-peft methods``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_peft.anatomy.targets import resolve
from lightning_peft.methods.base import Layers, Names, Site
from lightning_peft.methods.child import ChildAdapter, ChildMethod

if TYPE_CHECKING:
    from lightning_peft.anatomy import Anatomy


class Gate(ChildAdapter):
    """Multiplies the output of its host by ``1 + gate``."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(()))

    def connect(self, model: nn.Module, site: Site) -> None:
        model.get_submodule(site.module).register_forward_hook(self.after)

    def after(self, host: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output * (1 + self.gate).to(output.dtype) if self.active else output

    def merged(self, host: nn.Module) -> dict[str, Tensor]:
        own = {n: p for n, p in host.named_parameters(recurse=False) if n in ("weight", "bias")}
        return {name: value.float() * (1 + self.gate.float()) for name, value in own.items()}


@dataclass(frozen=True)
class Gates(ChildMethod):
    """Train one gate after each branch of each block: ``x + (1 + g) branch(x)``.

    Attributes:
        targets: The layers to adapt; by default the last linear layer of each MLP.
        layers: The blocks to adapt, such as ``"last:4"``; ``None`` for all.
        exclude: Modules to leave out.
    """

    name: ClassVar[str] = "gates"
    family: ClassVar[str] = "scaling"
    formula: ClassVar[str] = "(1 + g) y"
    summary: ClassVar[str] = "one gate for each branch"
    reference: ClassVar[str] = "an example"
    mergeable: ClassVar[bool] = True

    targets: Names = "mlp-out"
    layers: Layers = None
    exclude: Names = None

    def select(self, anatomy: Anatomy, model: nn.Module) -> tuple[Site, ...]:
        names = resolve(
            anatomy, model, self.targets or "mlp-out", layers=self.layers, exclude=self.exclude
        )
        return tuple(Site(name, "gate") for name in names)

    def build(self, model: nn.Module, sites: tuple[Site, ...]) -> Iterator[ChildAdapter]:
        for _ in sites:
            yield Gate()
