"""Running a forward without its first part.

Nothing is renamed or wrapped. During one call, the modules of the first part (the *units*) have
another ``forward`` on the instance, and the places that read their outputs (the *taps*) have a hook
that runs before all others. The code between the modules computes with placeholders, whose results
are never read; they are NaN, so that a mistake would show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

__all__ = ["Blank", "NotSplit", "Recording", "Slot", "Splice", "Tap", "Unit", "like"]

Forward = Callable[..., Any]
Side = Literal["in", "out"]


class NotSplit(Exception):
    """A forward cannot be split here; the message is a clause that says why."""


class _Enough(Exception):
    """Every tap was reached."""


@dataclass(frozen=True, eq=False)
class Unit:
    """A module of the first part, and the number of its calls there."""

    name: str
    module: nn.Module
    calls: int = 1


@dataclass(frozen=True, eq=False)
class Tap:
    """A place outside the first part that reads one of its outputs.

    Attributes:
        name: The module's name.
        module: The module.
        side: Whether the module's input or its output is read.
        call: The number of the module's call, from 0.
    """

    name: str
    module: nn.Module
    side: Side
    call: int = 0


@dataclass(frozen=True)
class Blank:
    """The shape of a missing tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    stride: tuple[int, ...]

    def fill(self) -> Tensor:
        """Make a tensor of NaN that takes no memory."""
        value = float("nan") if self.dtype.is_floating_point or self.dtype.is_complex else 0
        one = torch.full((), value, dtype=self.dtype, device=self.device)
        return one.expand(self.shape)


@dataclass(frozen=True)
class Slot:
    """One kept tensor: a leaf of the value that a tap reads."""

    tap: int
    leaf: int


@dataclass
class Tree:
    """The value that a tap reads or a unit returns, with its tensors or their shapes."""

    spec: TreeSpec
    leaves: list[Any]


@dataclass
class Recording:
    """The record of one run of the whole forward.

    Attributes:
        output: The output of the forward.
        taps: The value that each tap read, by its index in the list of taps.
        units: The output of each unit, by its index in the list of units and the call.
    """

    output: Any = None
    taps: dict[int, Tree] = field(default_factory=dict)
    units: dict[tuple[int, int], Tree] = field(default_factory=dict)


def like(tensor: Tensor) -> Blank:
    """Return the shape of a tensor."""
    return Blank(tuple(tensor.shape), tensor.dtype, tensor.device, tensor.stride())


@dataclass(frozen=True, eq=False)
class Splice:
    """A first part of one module's forward: its modules, and the places that read from them.

    Attributes:
        root: The module.
        units: The skipped modules; the root itself if its whole forward is skipped.
        taps: The places that read the outputs of the units.
    """

    root: nn.Module
    units: tuple[Unit, ...]
    taps: tuple[Tap, ...]

    @property
    def whole(self) -> bool:
        """Whether all of the forward is skipped."""
        return any(unit.module is self.root for unit in self.units)

    def record(
        self,
        forward: Forward,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        slots: Sequence[Slot] | None = None,
        *,
        first_part: bool = False,
    ) -> Recording:
        """Run the whole forward and record the values that the taps read.

        Args:
            forward: The root's own forward.
            args: Its arguments.
            kwargs: Its keyword arguments.
            slots: The tensors to keep; None keeps all.
            first_part: Stop at the last tap; there is no output then.

        Returns:
            The record. Kept tensors are copies, since the later part may change its input in place;
            the others are recorded as shapes.
        """
        wanted = None if slots is None else {(slot.tap, slot.leaf) for slot in slots}
        seen = Recording()

        def keep(tap: int, value: Any) -> Any:
            leaves, spec = tree_flatten(value)
            seen.taps[tap] = Tree(spec, [kept(tap, i, leaf) for i, leaf in enumerate(leaves)])
            if first_part and len(seen.taps) == len(self.taps):
                raise _Enough
            return value

        def kept(tap: int, i: int, leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            if wanted is None or (tap, i) in wanted:
                # a tensor that requires a gradient is only kept for the search, which checks it
                return leaf.detach().clone().requires_grad_(leaf.requires_grad)
            return like(leaf)

        def run(number: int, call: int, original: Forward, a: Any, k: Any) -> Any:
            output = original(*a, **k)
            leaves, spec = tree_flatten(output)
            shapes = [like(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            seen.units[number, call] = Tree(spec, shapes)
            return output

        if self.whole:
            with suppress(_Enough):
                seen.output = run(0, 0, forward, args, kwargs)
                keep(0, seen.output)
            return seen
        with suppress(_Enough), self._installed(run, keep):
            seen.output = forward(*args, **kwargs)
        self._check_taps(seen.taps)
        return seen

    def replay(
        self,
        forward: Forward,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        units: dict[tuple[int, int], Tree],
        put: Callable[[int, Tree], Tree],
    ) -> Any:
        """Run the forward without its first part.

        Args:
            forward: The root's own forward.
            args: Its arguments.
            kwargs: Its keyword arguments.
            units: The shapes of the units' outputs for such arguments.
            put: Maps a tap's number and the value that it reads now to the value to read instead.

        Returns:
            The output of the forward.

        Raises:
            NotSplit: If a tap is not reached.
        """
        reached: dict[int, Tree] = {}

        def deliver(tap: int, value: Any) -> Any:
            leaves, spec = tree_flatten(value)
            reached[tap] = put(tap, Tree(spec, leaves))
            return tree_unflatten(reached[tap].leaves, spec)

        def skip(number: int, call: int, original: Forward, a: Any, k: Any) -> Any:
            tree = units[number, call]
            leaves = [leaf.fill() if isinstance(leaf, Blank) else leaf for leaf in tree.leaves]
            return tree_unflatten(leaves, tree.spec)

        if self.whole:
            return deliver(0, skip(0, 0, forward, args, kwargs))
        with self._installed(skip, deliver):
            output = forward(*args, **kwargs)
        self._check_taps(reached)
        return output

    def _check_taps(self, reached: dict[int, Tree]) -> None:
        missed = [tap.name for i, tap in enumerate(self.taps) if i not in reached]
        if missed:
            raise NotSplit(f"'{missed[0]}' is not called by every forward")

    @contextmanager
    def _installed(
        self,
        run: Callable[[int, int, Forward, Any, Any], Any],
        tap: Callable[[int, Any], Any],
    ) -> Iterator[None]:
        """Install the units' replacements and the taps' hooks for one call."""
        by_place = {(id(t.module), t.side, t.call): i for i, t in enumerate(self.taps)}
        depth = _Depth()
        handles = []
        before = [unit.module.__dict__.get("forward") for unit in self.units]
        try:
            for number, (unit, kept) in enumerate(zip(self.units, before, strict=True)):
                original = kept if kept is not None else unit.module.forward
                unit.module.__dict__["forward"] = _Stand(
                    unit, number, original, run, tap, by_place, depth
                )
            for module in {id(t.module): t.module for t in self.taps if t.side == "in"}.values():
                hook = _Reader(module, tap, by_place, depth)
                handles.append(
                    module.register_forward_pre_hook(hook, prepend=True, with_kwargs=True)
                )
            yield
        finally:
            for handle in handles:
                handle.remove()
            for unit, kept in zip(self.units, before, strict=True):
                if kept is None:
                    unit.module.__dict__.pop("forward", None)
                else:
                    unit.module.__dict__["forward"] = kept


class _Depth:
    """The number of units that are running: modules called by a unit are part of it."""

    inside = 0


@dataclass
class _Stand:
    """A replacement for the forward of a unit."""

    unit: Unit
    number: int
    original: Forward
    run: Callable[[int, int, Forward, Any, Any], Any]
    tap: Callable[[int, Any], Any]
    taps: dict[tuple[int, Side, int], int]
    depth: _Depth
    calls: int = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.depth.inside or self.calls >= self.unit.calls:
            return self.original(*args, **kwargs)
        call, self.calls = self.calls, self.calls + 1
        self.depth.inside += 1
        try:
            output = self.run(self.number, call, self.original, args, kwargs)
        finally:
            self.depth.inside -= 1
        place = self.taps.get((id(self.unit.module), "out", call))
        return output if place is None else self.tap(place, output)


@dataclass
class _Reader:
    """The hook of a tap that reads a module's input."""

    module: nn.Module
    tap: Callable[[int, Any], Any]
    taps: dict[tuple[int, Side, int], int]
    depth: _Depth
    calls: int = 0

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if self.depth.inside:
            return None
        call, self.calls = self.calls, self.calls + 1
        place = self.taps.get((id(self.module), "in", call))
        return None if place is None else self.tap(place, (args, kwargs))
