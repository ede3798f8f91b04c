"""Several adapters on one backbone: one held in memory, each request with the adapter it asks for.

The adapters are of one structure, so that changing them is changing which values the same
parameters hold: a few pointers, no copy, no new kernel, and exact for every method. A batch whose
samples want different adapters is run a group at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from lightning_peft.adaptation.handle import find_adaptation
from lightning_peft.adaptation.loading import adapted_as, fitting_state
from lightning_peft.anatomy.forward import first_tensor
from lightning_peft.errors import AdapterFileError, MethodError, PEFTError, near
from lightning_peft.files.reading import StoredAdapter, read_adapter

__all__ = ["AdapterSwitch"]


class AdapterSwitch:
    """Holds several adapters on one backbone and lets each request choose.

    ::

        adapters = lp.AdapterSwitch(backbone, {"birds": "runs/a/adapter", "cars": "runs/b/adapter"})
        with adapters.use("birds"):
            logits = backbone(images)
        logits = adapters(images, ["birds", "cars", "birds"])     # one adapter a sample

    The adapters share method, settings, head and whatever else was trained; their heads may have
    different numbers of classes. Each costs the memory of its own tensors, the backbone is held
    once. Requests of several threads take turns.

    Args:
        backbone: The backbone that all of them were trained on, not yet adapted; changed in place.
        adapters: Adapter directories by name; at least one. The first is active.
        strict_backbone: Whether another backbone than that of an adapter is an error.

    Raises:
        AdapterFileError: If a directory is no adapter, or an adapter is of another structure than
            the first; all of them are listed, with what differs.
        BackboneMismatchError: If one was trained on another backbone.
        MethodError: If there is none, or the method cannot be applied to this model.
    """

    def __init__(
        self,
        backbone: nn.Module,
        adapters: Mapping[str, str | PathLike[str]],
        *,
        strict_backbone: bool = True,
    ) -> None:
        if not adapters:
            raise MethodError("expected at least one adapter by name, got none.")
        if find_adaptation(backbone) is not None:
            raise MethodError(
                f"this {type(backbone).__name__} is adapted already: expected a backbone without "
                "an adaptation."
            )
        stored = {name: read_adapter(where) for name, where in adapters.items()}
        first = next(iter(stored))
        _refuse_different(stored[first], stored)
        flags = [(parameter, parameter.requires_grad) for parameter in backbone.parameters()]
        self._description = stored[first]
        self.adaptation = adapted_as(backbone, stored[first])
        self._strict = strict_backbone
        self._lock = threading.RLock()
        self._tensors = _owners(backbone)
        self._originals: dict[str, Tensor] = {}
        self._held: dict[str, dict[str, Tensor]] = {}
        self._active: str | None = None
        try:
            for name, adapter in stored.items():
                self._hold(name, adapter)
        except PEFTError:  # no value of the backbone was touched so far
            self.adaptation.unload()
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
            raise
        self.activate(first)

    @property
    def model(self) -> nn.Module:
        """The adapted backbone."""
        return self.adaptation.model

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters that are held."""
        return tuple(self._held)

    @property
    def active(self) -> str | None:
        """The adapter that the model computes with at this moment."""
        return self._active

    def add(self, name: str, directory: str | PathLike[str]) -> None:
        """Hold one more adapter, or another one under a name that is there and not active.

        Args:
            name: What requests call it.
            directory: Its directory.

        Raises:
            AdapterFileError: As for the class.
            BackboneMismatchError: As for the class.
            MethodError: If an adapter of that name is active.
        """
        stored = read_adapter(directory)
        _refuse_different(self._description, {name: stored})
        with self._lock:
            self._refuse_active(name, "replaced")
            before = self._active
            self._point(None)
            try:
                self._hold(name, stored)
            finally:
                self._point(before)

    def remove(self, name: str) -> None:
        """Forget an adapter that is not active.

        Raises:
            MethodError: If there is no such adapter, or it is active.
        """
        self._refuse_unknown([name])
        with self._lock:
            self._refuse_active(name, "removed")
            del self._held[name]

    def activate(self, name: str) -> None:
        """Let the model compute with an adapter from now on.

        Raises:
            MethodError: If there is no such adapter, or the one in the model is merged.
        """
        self._refuse_unknown([name])
        with self._lock:
            if self.adaptation.merged:
                raise MethodError(
                    "the active adapter is merged into the weights: call adaptation.unmerge() "
                    "before another one is chosen."
                )
            if name != self._active:
                self._point(name)

    @contextmanager
    def use(self, name: str) -> Iterator[nn.Module]:
        """Let the model compute with an adapter inside the context; for inference.

        Other threads wait until the context is left.

        Args:
            name: The adapter.

        Yields:
            The model.

        Raises:
            MethodError: As for :meth:`activate`.
        """
        self._refuse_unknown([name])
        with self._lock:
            before = self._active
            self.activate(name)
            try:
                yield self.model
            finally:
                if before is not None:
                    self.activate(before)

    def __call__(self, inputs: Any, names: str | Sequence[str]) -> Tensor:
        """Run a batch whose samples may want different adapters; without gradients.

        Each group of samples goes through the model with its adapter, as if it came alone.

        Args:
            inputs: A tensor, a tuple of positional or a mapping of keyword arguments of the model's
                forward; the first size of each tensor is B.
            names: The adapter of each sample, B names; or one for all.

        Returns:
            The model's first output tensor, ``(B, ...)``, in the order of the samples.

        Raises:
            MethodError: If there are not as many names as samples, an adapter is unknown, or the
                outputs are of different shapes, as those of heads for other numbers of classes.
        """
        found = self.groups(inputs, names)
        outputs = [output for _, output in found.values()]
        if len({output.shape[1:] for output in outputs}) > 1:
            shapes = ", ".join(f"{n} {tuple(o.shape[1:])}" for n, (_, o) in found.items())
            raise MethodError(
                f"expected outputs of one shape for one batch, got those of {shapes}. Call "
                "groups(), which gives the output of each adapter by itself."
            )
        order = torch.cat([index for index, _ in found.values()])
        return torch.cat(outputs)[order.argsort().to(outputs[0].device)]

    def groups(self, inputs: Any, names: str | Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """Run a batch as :meth:`__call__` does and give the output of each adapter by itself.

        Returns:
            For each adapter that was asked for, the places of its samples in the batch ``(G,)``,
            and their output ``(G, ...)``.

        Raises:
            MethodError: If there are not as many names as samples, or an adapter is unknown.
        """
        size = _batch_size(inputs)
        wanted = [names] * size if isinstance(names, str) else list(names)
        if len(wanted) != size or not wanted:
            raise MethodError(
                f"expected the name of an adapter for each of {size} samples, got {len(wanted)}."
            )
        self._refuse_unknown(wanted)
        found: dict[str, tuple[Tensor, Tensor]] = {}
        with self._lock, torch.no_grad():
            for name in dict.fromkeys(wanted):
                index = torch.tensor([i for i, other in enumerate(wanted) if other == name])
                args, kwargs = _chosen(inputs, index if len(index) < size else None)
                with self.use(name) as model:
                    found[name] = index, first_tensor(model(*args, **kwargs))
        return found

    def _hold(self, name: str, stored: StoredAdapter) -> None:
        """Verify an adapter against the model, in which no adapter is active, and keep it."""
        own = self.adaptation
        state = stored.state_for(own.model, own.method, own.head, own.state_names())
        for key in (self.adaptation.state_names() | state.keys()) & self._tensors.keys():
            self._originals.setdefault(key, self._tensor(key).data)
        # a head for another number of classes is the one thing that may be of another shape
        resized = [
            key
            for key in self.adaptation.head_names() & state.keys()
            if self._originals[key].shape != state[key].shape
        ]
        try:
            for key in resized:
                self._tensor(key).data = self._originals[key].new_empty(state[key].shape)
            state = fitting_state(self.adaptation, stored, strict_backbone=self._strict)
        finally:
            for key in resized:
                self._tensor(key).data = self._originals[key]
        # memory of our own: that of the file is aligned otherwise, and kernels round by alignment
        self._held[name] = {
            key: self._originals[key].new_empty(tensor.shape).copy_(tensor)
            for key, tensor in state.items()
        }

    def _point(self, name: str | None) -> None:
        """Let the parameters hold the values of an adapter; of none, what they held at first."""
        if self._active is not None:  # they may have moved to another device since
            for key in self._held[self._active]:
                self._held[self._active][key] = self._tensor(key).data
        values = {} if name is None else self._held[name]
        for key, original in self._originals.items():
            tensor = self._tensor(key)
            tensor.data = values.get(key, original).to(tensor)
        self._active = name

    def _tensor(self, name: str) -> Tensor:
        holder, key = self._tensors[name]
        found = holder[key]
        assert found is not None
        return found

    def _refuse_unknown(self, names: Sequence[str]) -> None:
        unknown = [name for name in dict.fromkeys(names) if name not in self._held]
        if unknown:
            raise MethodError(
                " ".join(f"no adapter '{name}'. {near(name, self._held)}" for name in unknown)
            )

    def _refuse_active(self, name: str, what: str) -> None:
        if name == self._active:
            raise MethodError(
                f"expected an adapter that is not active to be {what}, got '{name}', which is: "
                "activate another one first."
            )


def _owners(model: nn.Module) -> dict[str, tuple[dict[str, Any], str]]:
    """Say which dictionary holds each parameter and buffer."""
    found: dict[str, tuple[dict[str, Any], str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for holder in (module._parameters, module._buffers):
            for key, tensor in holder.items():
                if tensor is not None:
                    found[f"{path}.{key}" if path else key] = holder, key
    return found


def _refuse_different(first: StoredAdapter, others: Mapping[str, StoredAdapter]) -> None:
    """Refuse adapters that are not of the structure of the first, all of them at once."""
    problems = []
    for name, stored in others.items():
        found = []
        for key in ("head", "also_train", "batchnorm", "backbone_dropout"):
            ours, theirs = first.about.get(key), stored.about.get(key)
            if ours is not None and theirs is not None and ours != theirs:
                found.append(f"{key} {theirs!r} instead of {ours!r}")
        ours, theirs = dict(first.about["method"]), dict(stored.about["method"])
        found += [
            f"{key} {theirs.get(key)!r} instead of {ours.get(key)!r}"
            for key in sorted(ours.keys() | theirs.keys())
            if ours.get(key) != theirs.get(key)
        ]
        if found:
            problems.append(f"'{name}' ({stored.path}) has {', '.join(found)}")
    if problems:
        raise AdapterFileError(
            f"expected adapters of one structure, that of {first.path}: "
            + "; ".join(problems)
            + ". Hold each structure on a backbone of its own."
        )


def _batch_size(inputs: Any) -> int:
    values = inputs.values() if isinstance(inputs, Mapping) else inputs
    values = [inputs] if isinstance(inputs, Tensor) else list(values)
    sizes = {len(value) for value in values if isinstance(value, Tensor) and value.ndim}
    if len(sizes) != 1:
        raise MethodError(
            f"expected tensors of one number of samples, got {sorted(sizes) or 'no tensor'}."
        )
    return int(sizes.pop())


def _chosen(inputs: Any, index: Tensor | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Choose samples of a batch; all of them without an index, and then nothing is copied."""

    def choose(value: Any) -> Any:
        if index is None or not isinstance(value, Tensor) or not value.ndim:
            return value
        return value[index.to(value.device)]

    if isinstance(inputs, Mapping):
        return (), {name: choose(value) for name, value in inputs.items()}
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    return tuple(map(choose, given)), {}
