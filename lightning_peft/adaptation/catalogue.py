"""The methods as a table: formulas, trained parameters, cost at inference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lightning_peft.adaptation.adapt import adapt
from lightning_peft.errors import PEFTError
from lightning_peft.evaluation.efficiency import count_flops
from lightning_peft.methods.base import Method
from lightning_peft.methods.registry import create_method, list_methods, method_class

__all__ = ["Entry", "catalogue", "fitting", "methods_with_defaults"]


def methods_with_defaults() -> list[str]:
    """List the methods that have defaults; methods that wrap others have none."""
    return [name for name in list_methods() if name not in ("hf", "union")]


@dataclass(frozen=True)
class Entry:
    """One method on one backbone, with the method's defaults.

    Attributes:
        name: The method's name.
        trained: Parameters that it trains in the backbone, without a head; ``None`` if it
            does not support this backbone.
        extra: Floating-point operations that it adds to a forward pass, as a share of the
            backbone's own; 0 if it can be merged or trains in place.
        refusal: Why it does not support this backbone.
    """

    name: str
    trained: int | None
    extra: float
    refusal: str = ""

    @property
    def method(self) -> type[Method]:
        """The method's class."""
        return method_class(self.name)


def catalogue(
    build: Callable[[], nn.Module], inputs: torch.Tensor, names: Sequence[str] | None = None
) -> Iterator[Entry]:
    """Try methods on a backbone.

    Args:
        build: Makes a new backbone without a head, best on the ``meta`` device.
        inputs: A batch for its forward, on the same device.
        names: Which methods; by default all that have defaults.

    Yields:
        One entry for each method.
    """
    with torch.no_grad():
        own = count_flops(build().eval(), inputs)
    for name in methods_with_defaults() if names is None else names:
        model = build().eval()
        method = create_method(name)
        try:
            report = adapt(model, method).report()
        except PEFTError as error:
            yield Entry(name, None, 0.0, str(error))
            continue
        extra = 0.0
        if not (method.mergeable or method.changes_backbone):
            with torch.no_grad():
                extra = count_flops(model, inputs) / own - 1
        yield Entry(name, report.trained, extra)


def fitting(build: Callable[[], nn.Module]) -> dict[str, str]:
    """Find out which methods support a backbone.

    Args:
        build: Makes a new backbone, best on the ``meta`` device.

    Returns:
        Why each method that has defaults is refused, or ``""`` if it is not.
    """
    found = {}
    for name in methods_with_defaults():
        try:
            adapt(build(), create_method(name))
            found[name] = ""
        except PEFTError as error:
            found[name] = str(error)
    return found
