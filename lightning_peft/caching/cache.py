"""``PrefixCache``: replaces a backbone's forward and runs its frozen part once for each sample."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from lightning_peft.caching.compare import difference, unlike
from lightning_peft.caching.context import (
    context_of,
    frozen_tensors,
    mode_of,
    sampled,
    shape_of,
    unfit,
)
from lightning_peft.caching.keys import batch_size, sample_keys
from lightning_peft.caching.layout import laid_out
from lightning_peft.caching.mode import Mode, Shapes
from lightning_peft.caching.search import find_split
from lightning_peft.caching.splice import NotSplit, like
from lightning_peft.caching.stand_in import CachedForward
from lightning_peft.caching.store import FeatureStore
from lightning_peft.caching.trace import devices_of, random_states, undisturbed
from lightning_peft.evaluation.efficiency import human_bytes

__all__ = ["Count", "PrefixCache"]


@dataclass
class Count:
    """Counts of how often features were found.

    Attributes:
        batches: Forwards of batches.
        cached: Those whose first part was skipped.
        samples: Samples in all batches.
        found: Samples whose features were found.
    """

    batches: int = 0
    cached: int = 0
    samples: int = 0
    found: int = 0


class PrefixCache:
    """Keep the outputs (features) of the frozen first part of a backbone, and skip that part.

    >>> backbone = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
    >>> _ = backbone[0].requires_grad_(False)
    >>> images = torch.randn(4, 8)
    >>> with PrefixCache(backbone) as cache:  # computed, computed once more to compare, read back
    ...     outputs = [backbone(images) for _ in range(3)]
    >>> torch.equal(outputs[0], outputs[2])
    True
    >>> cache.count.cached, cache.where
    (1, "up to '2'")

    The key of a feature is the content of its sample, the frozen weights, the modes of the modules
    and the settings of autocast, so any order of the data and any run may use it. A batch is read
    back if all of its samples are known; otherwise the whole backbone runs and new features are
    kept. Nothing is used before a comparison: for every shape of batch the forward is run with and
    without the cache, and both outputs must be the same bit for bit. When other parameters are
    trained, the first part is searched for again.

    Copies and pickles of the backbone run it whole.

    Args:
        backbone: Any module; its own forward is what is cached.
        max_bytes: The largest size of all features.
        directory: Directory of the features, for other processes and later runs; None keeps them in
            memory.
        min_share: The smallest share of a forward's operations that is worth caching, in [0, 1].
        samples: The number of different samples, for the estimate; None if it is not known.
        say: Called with every message.
        checked: What caches of this process have compared, for others of the same backbone and
            weights, which need not compare it again; None compares everything.

    Attributes:
        count: How often features were found.
        calls: How often the backbone's forward was called.
        made_in: The number of samples seen when the features were last discarded.
        off: Why nothing is cached; None while the cache is on.
        where: Where the first part ends; None before the first forward.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        max_bytes: int = 4 * 2**30,
        directory: str | os.PathLike[str] | None = None,
        min_share: float = 0.1,
        samples: Callable[[], int | None] = lambda: None,
        say: Callable[[str], None] = lambda message: None,
        checked: dict[Any, Shapes] | None = None,
    ) -> None:
        self.backbone = backbone
        self.store = FeatureStore(max_bytes, directory)
        self.min_share = min_share
        self.count = Count()
        self.calls = 0
        self.made_in = -1
        self.off: str | None = None
        self.where: str | None = None
        self.paused = False
        self._samples = samples
        self._say = say
        self._shared = checked
        self._checked = {} if checked is None else checked
        self._modes: dict[bytes, Mode] = {}
        self._refused: set[bytes] = set()
        self._trained: tuple[int, ...] | None = None
        self._inside = False
        self._kept_forward: Any = None
        self._sampled: dict[str, str] = {}

    # --- on and off -------------------------------------------------------------------------------

    def install(self) -> None:
        """Replace the backbone's forward, until :meth:`remove`."""
        table = self.backbone.__dict__
        if isinstance(table.get("forward"), CachedForward):
            raise ValueError("this backbone already has a feature cache: remove it first")
        self._kept_forward = table.get("forward")
        table["forward"] = CachedForward(self.backbone, self, self._kept_forward)
        reason = unfit(self.backbone)
        if reason:
            self.give_up(reason)

    def remove(self) -> None:
        """Restore the backbone's own forward, and drop all features."""
        standing = self.backbone.__dict__.get("forward")
        if isinstance(standing, CachedForward) and standing.cache is self:
            if self._kept_forward is None:
                del self.backbone.__dict__["forward"]
            else:
                self.backbone.__dict__["forward"] = self._kept_forward
        self._forget()

    def __enter__(self) -> PrefixCache:
        self.install()
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def give_up(self, reason: str) -> None:
        """Run the whole backbone from now on, and report why.

        Args:
            reason: The reason, as one clause.
        """
        self.off = reason
        self._forget()
        self._say(f"FeatureCache: off, {reason}.")

    def verify(self) -> None:
        """Check that frozen weights have not changed, even by writes to ``.data``.

        Every forward notices writes that autograd records; this one reads samples of the values.
        """
        self._look_for_changes()
        if self._modes and sampled(self.backbone) != self._sampled:
            self._say("FeatureCache: frozen weights were written to; the features are redone.")
            self._forget()

    def _forget(self) -> None:
        self.made_in = self.count.samples
        self.store.clear()
        self._modes.clear()
        self._refused.clear()
        if self._shared is None:
            self._checked.clear()

    # --- a forward --------------------------------------------------------------------------------

    def run(
        self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Return the output of the forward, without running its first part if that is known."""
        self.calls += 1
        if self.off is not None or self.paused or self._inside or torch.compiler.is_compiling():
            return forward(*args, **kwargs)
        self._inside = True
        try:
            return self._run(forward, args, kwargs)
        finally:
            self._inside = False

    def _run(self, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self._look_for_changes()
        size = batch_size(args, kwargs)
        if not size or any(
            isinstance(leaf, Tensor) and (leaf.requires_grad or leaf.is_meta)
            for leaf in tree_leaves((args, kwargs))
        ):
            return forward(*args, **kwargs)
        mode = self._mode(forward, args, kwargs)
        if mode is None:
            return forward(*args, **kwargs)
        keys = sample_keys(args, kwargs, mode.context)
        found = sum(key in self.store for key in keys)
        self.count.batches += 1
        self.count.samples += size
        self.count.found += found
        shape = shape_of(args, kwargs)
        shapes = mode.shapes.get(shape) or self._checked.get((mode.compared, shape))
        if shapes is None:
            return self._first_of_shape(mode, shape, keys, forward, args, kwargs)
        if found < size:
            seen = mode.split.splice.record(forward, args, kwargs, mode.split.slots)
            self._keep(mode, keys, mode.features(seen))
            return seen.output
        if mode.compared not in self._checked:
            return self._audit(mode, shapes, keys, forward, args, kwargs)
        self.count.cached += 1
        return mode.replay(shapes, self._take(shapes, keys), forward, args, kwargs)

    def _first_of_shape(
        self, mode: Mode, shape: Any, keys: list[bytes], forward: Any, args: Any, kwargs: Any
    ) -> Any:
        """Run the whole forward on a batch, and compare it with the output of the cache."""
        devices = devices_of((args, kwargs))
        before = random_states(devices)
        seen = mode.split.splice.record(forward, args, kwargs, mode.split.slots)
        try:
            features = mode.features(seen)
            for tensor in features:
                if tensor.ndim == 0 or len(tensor) != len(keys):
                    raise NotSplit("a tensor that it needs has no row for each sample")
            self._estimate(mode, features, len(keys))
            if self.off is not None:
                return seen.output
            shapes = Shapes(seen.units, [like(tensor) for tensor in features])
            mode.shapes[shape] = shapes
            with undisturbed(self.backbone, devices, before), _disable_current_modes():
                moved = [laid_out(t.cpu(), b) for t, b in zip(features, shapes.kept, strict=True)]
                output = mode.replay(shapes, moved, forward, args, kwargs)
            found = difference(seen.output, output)
            if found:
                raise NotSplit(f"the output with it differs from the output without it ({found})")
        except NotSplit as reason:
            self.give_up(str(reason))
        else:
            self._keep(mode, keys, features)
            self._checked[mode.compared, shape] = shapes
        return seen.output

    def _keep(self, mode: Mode, keys: list[bytes], features: list[Tensor]) -> None:
        """Keep the features of a batch; a disk that takes no more ends the cache, not the run."""
        try:
            self.store.put(keys, features, mode.fingerprint)
        except OSError as error:
            told = str(error).removesuffix(".")
            self.give_up(f"since nothing can be kept in {self.store.directory}: {told}")

    def _audit(
        self, mode: Mode, shapes: Shapes, keys: list[bytes], forward: Any, args: Any, kwargs: Any
    ) -> Any:
        """Compare the kept features, once, with those of another batch of the same samples."""
        seen = mode.split.splice.record(forward, args, kwargs, mode.split.slots)
        pairs = list(zip(mode.features(seen), self._take(shapes, keys), strict=True))
        if any(unlike(now, kept) for now, kept in pairs):
            self.give_up("the kept features of a sample differ from those computed now")
            return seen.output
        self._checked[mode.compared] = shapes
        if not all(torch.equal(now, kept) for now, kept in pairs):
            self._say(
                "FeatureCache: a sample's features depend on its place in the batch by "
                "rounding here, so results equal those without the cache up to rounding."
            )
        return seen.output

    def _take(self, shapes: Shapes, keys: list[bytes]) -> list[Tensor]:
        taken = self.store.take(keys)
        return [laid_out(tensor, blank) for tensor, blank in zip(taken, shapes.kept, strict=True)]

    # --- what is known ----------------------------------------------------------------------------

    def _look_for_changes(self) -> None:
        """Search for the first part again if other parameters train or frozen weights changed."""
        trained = tuple(id(p) for p in self.backbone.parameters() if p.requires_grad)
        if self._trained is not None and trained != self._trained and self._modes:
            self._say("FeatureCache: something else is trained now; the features are redone.")
            self._forget()
        elif any([t._version for t in m.tensors] != m.versions for m in self._modes.values()):
            self._say("FeatureCache: frozen weights were written to; the features are redone.")
            self._forget()
        elif trained != self._trained:
            self._refused.clear()
        self._trained = trained

    def _mode(self, forward: Any, args: Any, kwargs: Any) -> Mode | None:
        name = mode_of(self.backbone, args, kwargs)
        if name in self._refused:
            return None
        known = self._modes.get(name)
        if known is not None:
            return known
        try:
            # a mode that counts operations must see the whole step; and in inference mode, in which
            # validation runs, a dependence on trained parameters does not show
            with _disable_current_modes(), torch.inference_mode(False):
                split = find_split(self.backbone, forward, args, kwargs, self.min_share)
        except NotSplit as reason:
            self._refused.add(name)
            self._say(f"FeatureCache: nothing is cached {_when(self.backbone)}, {reason}.")
            return None
        tensors = list(frozen_tensors(self.backbone, split))
        context = context_of(self.backbone, split, name)
        versions = [tensor._version for tensor in tensors]
        compared = context, repr(self.backbone)
        made = Mode(split, context, compared, context.hex(), tensors, versions)
        self._modes[name] = made
        self._sampled = sampled(self.backbone)
        self.where = split.where
        self.store.open(made.fingerprint)
        return made

    def _estimate(self, mode: Mode, features: list[Tensor], size: int) -> None:
        """Report the size before the first batch is kept, or turn the cache off."""
        if mode.shapes or any(m.shapes for m in self._modes.values()):
            return
        each = sum(t.numel() * t.element_size() for t in features) / size
        samples = self._samples()
        total = None if samples is None else int(each * samples)
        limit = human_bytes(self.store.max_bytes)
        what = f"{human_bytes(each)} a sample" + (
            "" if total is None else f", {human_bytes(total)} for {samples:,} samples"
        )
        if total is not None and total > self.store.max_bytes:
            self.give_up(f"it would keep {what}, more than max_bytes={limit}")
            return
        place = "in memory" if self.store.directory is None else f"in {self.store.directory}"
        self._say(
            f"FeatureCache: the first part of {type(self.backbone).__name__} "
            f"({mode.split.where}, {mode.split.share:.0%} of a forward; {mode.split.why}) is "
            f"frozen and runs once a sample; it keeps {what}, of at most {limit}, {place}"
        )


def _when(backbone: nn.Module) -> str:
    return "in training mode" if backbone.training else "in evaluation mode"
