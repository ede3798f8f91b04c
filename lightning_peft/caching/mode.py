"""The state of a cache for one combination of module modes and autocast settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lightning_peft.caching.search import Split
from lightning_peft.caching.splice import Blank, Recording, Tree

__all__ = ["Mode", "Shapes"]


@dataclass(frozen=True)
class Shapes:
    """The shapes of the outputs of each unit, and of each kept tensor, for one shape of batch."""

    units: dict[tuple[int, int], Tree]
    kept: list[Blank]


@dataclass
class Mode:
    """The split of the forward for one combination of module modes and autocast settings."""

    split: Split
    context: bytes
    compared: tuple[bytes, str]
    """The context and the structure: what is compared for one need not be for another."""
    fingerprint: str
    tensors: list[Tensor]
    versions: list[int]
    shapes: dict[tuple[Any, ...], Shapes] = field(default_factory=dict)

    def features(self, seen: Recording) -> list[Tensor]:
        """Return the tensors to keep from a recorded forward."""
        return [seen.taps[slot.tap].leaves[slot.leaf] for slot in self.split.slots]

    def replay(
        self, shapes: Shapes, features: list[Tensor], forward: Any, args: Any, kwargs: Any
    ) -> Any:
        """Run a forward with ``features`` in place of its first part."""
        kept = {(s.tap, s.leaf): f for s, f in zip(self.split.slots, features, strict=True)}

        def put(tap: int, now: Tree) -> Tree:
            return Tree(now.spec, [kept.get((tap, i), leaf) for i, leaf in enumerate(now.leaves)])

        return self.split.splice.replay(forward, args, kwargs, shapes.units, put)
