"""The parts of a backbone: its head, its repeated blocks, and the roles of their layers.

The rest of lightning-peft never guesses from parameter names: it calls `anatomy`, which inspects
the model itself (timm, Hugging Face transformers, torchvision, or any `nn.Module`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch import nn

from lightning_peft.anatomy.blocks import find_blocks
from lightning_peft.anatomy.bypass import bypassed
from lightning_peft.anatomy.family import Family, architecture_of, backbones_in, family_of
from lightning_peft.anatomy.fast_path import fast_path_layers, fast_path_off, fast_path_on
from lightning_peft.anatomy.head import find_head, named_head
from lightning_peft.anatomy.roles import ROLES, find_roles
from lightning_peft.anatomy.task_layers import TaskLayers
from lightning_peft.anatomy.tree import grow, is_adaptable, plain_name

__all__ = [
    "ROLES",
    "Anatomy",
    "anatomy",
    "bypassed",
    "fast_path_layers",
    "fast_path_off",
    "fast_path_on",
    "is_adaptable",
    "layer_of",
    "plain_name",
]


@dataclass(frozen=True)
class Anatomy:
    """The parts of a backbone. All names are names of `model.named_modules()`, in its order.

    Attributes:
        family: The library that the model comes from; `"module"` for any other module and for a
            wrapper around a backbone.
        architecture: The name by which its library knows it (timm: as in `timm.list_models()`;
            transformers, torchvision: the class), of the one backbone inside where the model is a
            wrapper; None if there is no such name.
        head: The modules that belong to the task; may be empty.
        blocks: The repeated blocks, those of all stages in one sequence; may be empty.
        roles: For each of `ROLES`, the modules that play it; may be empty.
        how: How the head was found, for a person; empty if there is none, or it was named.
        doubt: What may be wrong about that guess; empty if nothing.
    """

    family: Family
    architecture: str | None
    head: tuple[str, ...]
    blocks: tuple[str, ...]
    roles: Mapping[str, tuple[str, ...]]
    how: str = ""
    doubt: str = ""

    @cached_property
    def _layers(self) -> dict[str, int]:
        return {plain_name(block): index for index, block in enumerate(self.blocks)}

    def layer_of(self, name: str) -> int | None:
        """Return the index of the block that holds a module or parameter.

        Args:
            name: Its name in the model, with or without the parts that `torch.compile` adds.

        Returns:
            The index into `blocks`; None for a part outside the blocks (stem, embeddings, the
            downsampling between two stages, the final norm, the head).
        """
        parts = plain_name(name).split(".")
        for length in range(len(parts), 0, -1):
            index = self._layers.get(".".join(parts[:length]))
            if index is not None:
                return index
        return None


def layer_of(anatomy: Anatomy, module_name: str) -> int | None:
    """Return the index of the block that holds a module or parameter; see `Anatomy.layer_of`."""
    return anatomy.layer_of(module_name)


def anatomy(model: nn.Module, head: str | Sequence[str] | Literal[False] | None = None) -> Anatomy:
    """Find the parts of a model.

    Only names, classes and shapes are read, so a model on the meta device works too.

    Args:
        model: A timm, transformers or torchvision model, or any module; it may be compiled.
        head: Names (or globs) of the modules that form the head; `()` or False for a model without
            a head; None to find it.

    Returns:
        The anatomy.

    Raises:
        TargetError: If `head` names modules that the model does not have.

    >>> net = nn.Sequential()
    >>> net.add_module("encoder", nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)))
    >>> net.add_module("head", nn.Linear(4, 2))
    >>> found = anatomy(net)
    >>> found.head, found.roles["all-linear"]
    (('head',), ('encoder.0', 'encoder.2'))
    """
    root = grow(model)
    if head is None:
        guess = find_head(root)
    else:
        guess = TaskLayers(tuple(named_head(root, () if head is False else head)))
    heads = guess.nodes
    blocks = find_blocks(root, heads)
    inside = backbones_in(root)
    named = inside[0].module if len(inside) == 1 else model
    return Anatomy(
        family=family_of(model),
        architecture=architecture_of(named),
        head=tuple(node.name for node in heads),
        blocks=tuple(node.name for node in blocks),
        roles=find_roles(root, blocks, heads),
        how=guess.how if heads else "",
        doubt=guess.doubt,
    )
