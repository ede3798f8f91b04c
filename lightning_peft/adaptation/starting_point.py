"""The pretrained values of parameters that are trained in place, and the decay towards them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_peft.adaptation.handle import Adaptation
from lightning_peft.anatomy import anatomy
from lightning_peft.anatomy.fingerprint import backbone_fingerprint
from lightning_peft.anatomy.names import inside

__all__ = ["StartingPoint", "in_place", "pull"]


def in_place(backbone: nn.Module, adaptation: Adaptation | None) -> dict[str, nn.Parameter]:
    """Return the parameters of a backbone that have pretrained values: no adapter's, no head's.

    Args:
        backbone: The backbone.
        adaptation: Its adaptation, if it is adapted.

    Returns:
        The parameters by name, including frozen ones; a shared one once.
    """
    head = anatomy(backbone).head if adaptation is None else adaptation.head
    new = set() if adaptation is None else set(adaptation.adapter_names())
    return {
        name: parameter
        for name, parameter in backbone.named_parameters()
        if name not in new and not inside(name, head) and parameter.is_floating_point()
    }


class StartingPoint:
    """Copies of parameters as they were before training.

    A deep copy of a module (as weight averaging makes) shares them, since they never change.

    Attributes:
        tensors: The copies, by name.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.tensors: dict[str, Tensor] = {n: p.detach().clone() for n, p in parameters.items()}

    def __deepcopy__(self, memo: dict[int, Any]) -> StartingPoint:
        return self

    def keep(self, names: set[str]) -> None:
        """Drop all other tensors."""
        self.tensors = {name: t for name, t in self.tensors.items() if name in names}

    def of(self, name: str, like: Tensor) -> Tensor:
        """Return the starting values of a parameter, on its device and in its dtype from now on."""
        self.tensors[name] = self.tensors[name].to(like)  # the same tensor if it fits already
        return self.tensors[name]

    def fingerprint(self) -> dict[str, Any]:
        """Return a fingerprint of this starting point: see :func:`backbone_fingerprint`."""
        holder = nn.Module()
        for number, (name, tensor) in enumerate(self.tensors.items()):
            part = name.replace(".", "/")  # a parameter's name has no dots
            holder.register_parameter(part or str(number), nn.Parameter(tensor, False))
        return backbone_fingerprint(holder, [name for name, _ in holder.named_parameters()])


def pull(parameters: Sequence[Tensor], starts: Sequence[Tensor], amount: float) -> None:
    r"""Move parameters towards their starting point: ``w <- w - amount (w - w0)``.

    Args:
        parameters: The parameters; changed in place.
        starts: Where each began.
        amount: The fraction of the distance: the learning rate times the strength.
    """
    if parameters:
        with torch.no_grad():
            torch._foreach_lerp_(list(parameters), list(starts), amount)
