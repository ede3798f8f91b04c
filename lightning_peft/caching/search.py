"""Finding the longest frozen first part of a backbone by running it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_peft.caching.candidates import candidates, lighter, path, whole
from lightning_peft.caching.compare import difference, unlike
from lightning_peft.caching.keys import batch_size
from lightning_peft.caching.splice import NotSplit, Recording, Slot, Splice, Tap, Tree
from lightning_peft.caching.trace import devices_of, trace, undisturbed

__all__ = ["Split", "find_split"]

_ROWS = 4  # samples that the search runs on


@dataclass(frozen=True, eq=False)
class Split:
    """A first part that can be skipped.

    Attributes:
        splice: The skipped modules and the places that read from them.
        slots: The tensors to keep.
        share: Its share of the operations of a forward, in [0, 1].
        where: Where it ends, in words.
        why: Why it is not longer, in words.
    """

    splice: Splice
    slots: tuple[Slot, ...]
    share: float
    where: str
    why: str


def find_split(
    root: nn.Module,
    forward: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    min_share: float,
) -> Split:
    """Find the longest first part whose output can be kept.

    A few samples are run once while every module is recorded. The first part ends before the first
    module that is trained, random or adapted; of the modules around that point, the innermost is
    taken for which the forward with the kept tensors, run without the first part, gives the same
    output bit for bit.

    Args:
        root: The backbone.
        forward: Its own forward.
        args: A batch.
        kwargs: Its keyword arguments.
        min_share: The smallest share of the operations that is worth caching.

    Returns:
        The first part. Random state and buffers are unchanged afterwards.

    Raises:
        NotSplit: If there is none; the message says why.
    """
    size = batch_size(args, kwargs)
    if size is None:
        raise NotSplit("its forward receives no batch of tensors")
    count = min(size, _ROWS)
    few, many = (_rows((args, kwargs), size, n) for n in (max(1, count // 2), count))
    search = _Search(root, forward, *many)
    with undisturbed(root, search.devices), torch.enable_grad():
        first = trace(root, forward, *many)
    # not the output of the watched run: where hooks look on, fast layers take the slow way, which
    # is the same up to rounding only
    with undisturbed(root, search.devices), torch.enable_grad():
        search.output = forward(*many[0], **many[1])
    reasons: list[str] = []
    end = path(first)[-1]
    why = f"'{end.name}': {end.why_not}" if end.why_not is not None and end.name else end.why_not
    if first.why_not is None:
        ends = iter([whole(root)])
    else:
        around = path(first)
        if len(around) == 1 and not first.calls:
            raise NotSplit(f"it has no modules that could be skipped ({first.why_not})")
        ends = candidates(root, around)
    best = 0.0
    for splice, share, where in ends:
        best = max(best, share)
        for tried in lighter(splice) if share >= min_share else ():
            try:
                slots = search.slots(tried)
                search.check_rows(tried, slots, few, count)
            except NotSplit as reason:
                reasons.append(str(reason))
            except Exception as error:  # code between modules may fail on missing values
                reasons.append(f"{where}: {type(error).__name__}: {error}")
            else:
                return Split(tried, slots, share, where, why or "")
    if not reasons:
        raise NotSplit(
            f"its frozen first part ends too early, with {best:.0%} of a forward (less than "
            f"min_share={min_share:.0%}): {why}"
        )
    raise NotSplit(max(reasons, key=lambda reason: ("Error" not in reason, reasons.index(reason))))


def _rows(tree: Any, size: int, count: int) -> Any:
    """Return copies of the first rows of a batch, which may be part of a graph in any mode."""

    def cut(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        of_batch = leaf.ndim > 0 and leaf.shape[0] == size
        return (leaf[:count] if of_batch else leaf).detach().clone()

    with torch.inference_mode(False):
        return tree_map(cut, tree)


# --- whether it may end there ---------------------------------------------------------------------


class _Search:
    """A test of possible ends on a few samples.

    Attributes:
        output: The output of the whole forward for them.
        seen: The values that the taps of the last tested end read.
    """

    def __init__(
        self,
        root: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.root = root
        self.forward = forward
        self.args = args
        self.kwargs = kwargs
        self.size = batch_size(args, kwargs)
        self.devices = devices_of((args, kwargs))
        self.output: Any = None
        self.seen = Recording()

    def slots(self, splice: Splice) -> tuple[Slot, ...]:
        """Return the tensors to keep, after testing that they are enough.

        Raises:
            NotSplit: If they cannot be kept or are not enough.
        """
        with undisturbed(self.root, self.devices), torch.enable_grad():
            self.seen = seen = splice.record(self.forward, self.args, self.kwargs)
        needed: list[Slot] = []

        def put(tap: int, now: Tree) -> Tree:
            spoilt = _spoilt(seen.taps[tap], now, splice.taps[tap])
            needed.extend(Slot(tap, i) for i in spoilt)
            kept = [
                seen.taps[tap].leaves[i] if i in spoilt else v for i, v in enumerate(now.leaves)
            ]
            return Tree(now.spec, kept)

        with undisturbed(self.root, self.devices), torch.enable_grad():
            output = splice.replay(self.forward, self.args, self.kwargs, seen.units, put)
        for slot in needed:
            self._check_slot(splice.taps[slot.tap], seen.taps[slot.tap].leaves[slot.leaf])
        found = difference(self.output, output)
        if found:
            where = splice.taps[-1].name
            raise NotSplit(
                f"what comes after '{where}' reads more from the first part than the input of "
                f"'{where}' ({found})"
            )
        return tuple(needed)

    def _check_slot(self, tap: Tap, leaf: Any) -> None:
        if not isinstance(leaf, Tensor):
            raise NotSplit(f"'{tap.name}' depends on a {type(leaf).__name__} from before")
        if leaf.requires_grad:
            raise NotSplit(f"the input of '{tap.name}' depends on trained parameters")
        if leaf.ndim == 0 or leaf.shape[0] != self.size:
            raise NotSplit(
                f"'{tap.name}' depends on a tensor from before without a row for each sample "
                f"({tuple(leaf.shape)})"
            )

    def check_rows(self, splice: Splice, slots: tuple[Slot, ...], few: Any, size: int) -> None:
        """Refuse features of a sample that depend on the rest of the batch.

        Raises:
            NotSplit: If they do, by more than rounding.
        """
        with undisturbed(self.root, self.devices), torch.enable_grad():
            fewer = splice.record(self.forward, few[0], few[1], slots, first_part=True)
        count = batch_size(*few)
        for slot in slots:
            whole = _leaf(self.seen, slot)
            part = _leaf(fewer, slot)
            if size > 1 and unlike(whole[:count], part):
                raise NotSplit(
                    f"the features of a sample at '{splice.taps[slot.tap].name}' depend on the "
                    "other samples of its batch"
                )


def _leaf(seen: Recording, slot: Slot) -> Tensor:
    leaf = seen.taps[slot.tap].leaves[slot.leaf]
    assert isinstance(leaf, Tensor)
    return leaf


def _spoilt(real: Tree, now: Tree, tap: Tap) -> set[int]:
    """Return the leaves that changed: these come from the skipped part."""
    if real.spec != now.spec:
        raise NotSplit(f"'{tap.name}' receives another structure without the first part")
    both = list(enumerate(zip(real.leaves, now.leaves, strict=True)))
    if tap.side == "out":
        return {i for i, (then, _) in both if isinstance(then, Tensor)}
    return {i for i, (then, after) in both if difference(then, after)}
