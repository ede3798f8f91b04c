"""What is known of a backbone for one combination of modules' modes and settings of autocast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lightning_peft.caching.search import Split
from lightning_peft.caching.splice import Blank, Recording, Tree

__all__ = ["Mode", "Shapes"]


@dataclass(frozen=True)
class Shapes:
    """What the first part gives for one shape of batch: each unit, and each tensor that is kept."""

    units: dict[tuple[int, int], Tree]
    kept: list[Blank]


@dataclass
class Mode:
    """What is known for one combination of module modes and autocast settings."""

    split: Split
    context: bytes
    fingerprint: str
    tensors: list[Tensor]
    versions: list[int]
    shapes: dict[tuple[Any, ...], Shapes] = field(default_factory=dict)
    audited: bool = False

    def features(self, seen: Recording) -> list[Tensor]:
        """Take what is kept out of a forward that was recorded."""
        return [seen.taps[slot.tap].leaves[slot.leaf] for slot in self.split.slots]

    def replay(
        self, shapes: Shapes, features: list[Tensor], forward: Any, args: Any, kwargs: Any
    ) -> Any:
        """Run a forward whose first part gives ``features`` without being run."""
        kept = {(s.tap, s.leaf): f for s, f in zip(self.split.slots, features, strict=True)}

        def put(tap: int, now: Tree) -> Tree:
            return Tree(now.spec, [kept.get((tap, i), leaf) for i, leaf in enumerate(now.leaves)])

        return self.split.splice.replay(forward, args, kwargs, shapes.units, put)
