"""The names that the tensors of a backbone have in a module besides the first."""

from __future__ import annotations

from torch import nn

from lightning_peft.adaptation.handle import find_adaptations
from lightning_peft.anatomy.names import every_name

__all__ = ["further_names", "join", "plain_name"]

_COMPILED = "_orig_mod."


def join(path: str, name: str) -> str:
    """Return the name in a module of something in the backbone at a path."""
    return f"{path}.{name}" if path else name


def further_names(pl_module: nn.Module) -> dict[str, str]:
    """Find the further names of the tensors of adapted backbones, anywhere in a module.

    A part of a backbone may have two names in it (``self.k = self.q``), and the backbone, or a part
    of it, another one beside it.

    Args:
        pl_module: The adapted module.

    Returns:
        The first name below the backbone's path, by each further name.
    """
    names = dict(every_name(pl_module))
    first: dict[int, str] = {}
    for path, adaptation in find_adaptations(pl_module).items():
        for name, tensor in every_name(adaptation.model):
            if join(path, name) in names:  # the path of a compiled wrapper is no prefix of names
                first.setdefault(id(tensor), join(path, name))
    return {
        name: first[id(tensor)]
        for name, tensor in names.items()
        if first.get(id(tensor), name) != name
    }


def plain_name(name: str) -> str:
    """Remove the parts that ``torch.compile`` adds to a name: only one side may be compiled."""
    return name.replace(_COMPILED, "").removesuffix("._orig_mod")
