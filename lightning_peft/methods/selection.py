"""The parts of a backbone that an in-place method selects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from torch import nn

from lightning_peft.anatomy.names import inside
from lightning_peft.anatomy.targets import resolve

if TYPE_CHECKING:
    from lightning_peft.anatomy import Anatomy
    from lightning_peft.methods.base import Layers, Names

__all__ = ["selected_modules"]


class _Selection(Protocol):
    @property
    def targets(self) -> Names: ...
    @property
    def layers(self) -> Layers: ...
    @property
    def exclude(self) -> Names: ...


def selected_modules(
    method: _Selection, anatomy: Anatomy, model: nn.Module
) -> Iterator[tuple[str, nn.Module]]:
    """Yield the backbone's modules, except the head, that a method selects.

    Args:
        method: Anything with ``targets``, ``layers`` and ``exclude``. Without targets and layers
            the whole backbone is selected.
        anatomy: The backbone's anatomy.
        model: The backbone.

    Yields:
        The name and the module, in model order, including modules inside a selected one.
    """
    roots: tuple[str, ...] = ("",)
    if method.targets is not None or method.layers is not None:
        roots = resolve(
            anatomy,
            model,
            method.targets if method.targets is not None else "blocks",
            layers=method.layers,
            containers=True,
        )
    left_out = anatomy.head
    if method.exclude is not None:
        left_out = (*left_out, *resolve(anatomy, model, method.exclude, containers=True))
    for name, module in model.named_modules():
        if inside(name, roots) and not inside(name, left_out):
            yield name, module
