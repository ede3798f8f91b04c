"""The anatomy of a module that is adapted, which is not searched for again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from torch import nn

from lightning_peft.adaptation.handle import find_adaptations
from lightning_peft.anatomy import Anatomy, anatomy
from lightning_peft.anatomy.names import inside

__all__ = ["standing_anatomy"]


def standing_anatomy(
    module: nn.Module, head: str | Sequence[str] | Literal[False] | None = None
) -> Anatomy:
    """Return a module's anatomy, with the head and the blocks that its adaptation has found.

    A search in an adapted module may find others. What lies outside of the adapted backbones is
    searched for as in any module.

    Args:
        module: A model, or the module that holds it; adapted or not.
        head: As for :func:`adapt`; ``None`` is the head of the adaptations, and one outside.

    Raises:
        TargetError: If ``head`` matches nothing.
    """
    adapted = find_adaptations(module)
    own = adapted.get("")
    if own is not None and head is None:
        head = own.head or False
    found = anatomy(module, head=head)
    if not adapted:
        return found
    paths = tuple(adapted)
    heads = _prefixed({path: a.head for path, a in adapted.items()}) if head is None else ()
    blocks = _prefixed({path: a.blocks for path, a in adapted.items()})
    return dataclasses.replace(
        found,
        head=tuple(n for n in found.head if head is not None or not inside(n, paths)) + heads,
        blocks=blocks or tuple(n for n in found.blocks if not inside(n, paths)),
    )


def _prefixed(names: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(f"{path}.{n}" if path else n for path, own in names.items() for n in own)
