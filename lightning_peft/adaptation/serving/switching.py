"""Several adapters on one backbone in memory, one of them chosen for each request or sample.

The adapters have the same structure, so switching only changes which tensors the parameters point
to: no copy, no new kernel, and exact for every method. A batch whose samples use different adapters
is run one adapter at a time.
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
from lightning_peft.adaptation.loading import adapted_as, fitting_state, named_state
from lightning_peft.adaptation.state import ADAPTED
from lightning_peft.anatomy.forward import first_tensor
from lightning_peft.errors import AdapterFileError, MethodError, PEFTError, near
from lightning_peft.files.reading import StoredAdapter, read_adapter
from lightning_peft.methods.from_peft.start import follow_factors

__all__ = ["AdapterSwitch"]


class AdapterSwitch:
    """Several adapters on one backbone, of which each request chooses one.

    ::

        adapters = lp.AdapterSwitch(backbone, {"birds": "runs/a/adapter", "cars": "runs/b/adapter"})
        with adapters.use("birds"):
            logits = backbone(images)
        logits = adapters(images, ["birds", "cars", "birds"])     # one adapter a sample

    The adapters must have the same method, settings and set of trained parameters; only the number
    of classes of their heads may differ. Each takes the memory of its own tensors, the backbone is
    held once. Requests from several threads run one after another.

    Args:
        backbone: The backbone that all of them were trained on, not yet adapted; changed in place.
        adapters: Adapter directories by name; at least one. The first is active.
        strict_backbone: Whether a backbone other than an adapter's own is an error.

    Raises:
        AdapterFileError: If a directory is not an adapter, or an adapter has another structure than
            the first; all of them are listed, with the differences.
        BackboneMismatchError: If one was trained on another backbone.
        MethodError: If there is no adapter, or the method cannot be applied to this model.

    >>> import copy, tempfile, torch
    >>> from torch import nn
    >>> import lightning_peft as lp
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> with tempfile.TemporaryDirectory() as runs:
    ...     for name in ("birds", "cars"):
    ...         lp.adapt(copy.deepcopy(net), "lora", rank=2).save(f"{runs}/{name}")
    ...     adapters = lp.AdapterSwitch(net, {n: f"{runs}/{n}" for n in ("birds", "cars")})
    ...
    >>> adapters(torch.ones(3, 4), ["birds", "cars", "birds"]).shape
    torch.Size([3, 2])
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
            raise MethodError(f"AdapterSwitch: this {type(backbone).__name__} {ADAPTED}.")
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
        """The names of the adapters."""
        return tuple(self._held)

    @property
    def active(self) -> str | None:
        """The name of the active adapter."""
        return self._active

    def add(self, name: str, directory: str | PathLike[str]) -> None:
        """Add an adapter, or replace one that is not active.

        Args:
            name: The name for requests.
            directory: The adapter's directory.

        Raises:
            AdapterFileError: As for the class.
            BackboneMismatchError: As for the class.
            MethodError: If an adapter of that name is active, or as for :meth:`activate`.
        """
        stored = read_adapter(directory)
        _refuse_different(self._description, {name: stored})
        with self._lock:
            self.adaptation.state.ask("AdapterSwitch.activate()")
            self._refuse_active(name, "replaced")
            before = self._active
            self._point(None)
            try:
                self._hold(name, stored)
            finally:
                self._point(before)

    def remove(self, name: str) -> None:
        """Remove an adapter that is not active.

        Raises:
            MethodError: If there is no such adapter, or it is active.
        """
        self._refuse_unknown([name])
        with self._lock:
            self._refuse_active(name, "removed")
            del self._held[name]

    def activate(self, name: str) -> None:
        """Make an adapter the active one.

        Raises:
            MethodError: If there is no such adapter, or the active one is merged, or in another
                state in which this is refused.
        """
        self._refuse_unknown([name])
        with self._lock:
            self.adaptation.state.ask("AdapterSwitch.activate()")
            if name != self._active:
                self._point(name)

    @contextmanager
    def use(self, name: str) -> Iterator[nn.Module]:
        """Use an adapter inside the context; for inference.

        Other threads wait until the context ends.

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
        """Run a batch whose samples may use different adapters, without gradients.

        The samples of each adapter go through the model as a batch of their own.

        Args:
            inputs: A tensor, a tuple of positional or a mapping of keyword arguments of the model's
                forward; the first dimension of each tensor is B.
            names: The adapter of each sample, B names; or one for all.

        Returns:
            The model's first output tensor, ``(B, ...)``, in the order of the samples.

        Raises:
            MethodError: If there are not as many names as samples, an adapter is unknown, or the
                outputs have different shapes, as from heads with other numbers of classes.
        """
        found = self.groups(inputs, names)
        outputs = [output for _, output in found.values()]
        if len({output.shape[1:] for output in outputs}) > 1:
            shapes = ", ".join(f"{n} {tuple(o.shape[1:])}" for n, (_, o) in found.items())
            raise MethodError(
                f"expected outputs of one shape for one batch, got those of {shapes}. Call "
                "groups(), which returns the output of each adapter separately."
            )
        order = torch.cat([index for index, _ in found.values()])
        return torch.cat(outputs)[order.argsort().to(outputs[0].device)]

    def groups(self, inputs: Any, names: str | Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """Run a batch like :meth:`__call__`, and return the output of each adapter separately.

        Returns:
            For each requested adapter, the indices of its samples in the batch ``(G,)``, and their
            output ``(G, ...)``.

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
        """Check an adapter against the model, in which no adapter is active, and keep it."""
        state = named_state(self.adaptation, stored)
        for key in (self.adaptation.state_names() | state.keys()) & self._tensors.keys():
            self._originals.setdefault(key, self._tensor(key).data)
        # only the head may have another shape, for another number of classes
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
        # a copy: the file's memory has another alignment, and kernels round by alignment
        self._held[name] = {
            key: self._originals[key].new_empty(tensor.shape).copy_(tensor)
            for key, tensor in state.items()
        }

    def _point(self, name: str | None) -> None:
        """Point the parameters to the tensors of an adapter, or to the original ones for None."""
        if self._active is not None:  # they may have moved to another device
            for key in self._held[self._active]:
                self._held[self._active][key] = self._tensor(key).data
        values = {} if name is None else self._held[name]
        for key, original in self._originals.items():
            tensor = self._tensor(key)
            tensor.data = values.get(key, original).to(tensor)
        follow_factors(self.model)
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
                f"expected an adapter that is not active to be {what}, got '{name}', which is "
                "active: activate another one first."
            )


def _owners(model: nn.Module) -> dict[str, tuple[dict[str, Any], str]]:
    """Return the dictionary and key that hold each parameter and buffer, by name."""
    found: dict[str, tuple[dict[str, Any], str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for holder in (module._parameters, module._buffers):
            for key, tensor in holder.items():
                if tensor is not None:
                    found[f"{path}.{key}" if path else key] = holder, key
    return found


def _refuse_different(first: StoredAdapter, others: Mapping[str, StoredAdapter]) -> None:
    """Refuse adapters with another structure than the first, all of them at once."""
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
            + ". Use a separate backbone for each structure."
        )


def _batch_size(inputs: Any) -> int:
    values = inputs.values() if isinstance(inputs, Mapping) else inputs
    values = [inputs] if isinstance(inputs, Tensor) else list(values)
    sizes = {len(value) for value in values if isinstance(value, Tensor) and value.ndim}
    if len(sizes) != 1:
        raise MethodError(
            f"expected tensors with the same number of samples, got {sorted(sizes) or 'no tensor'}."
        )
    return int(sizes.pop())


def _chosen(inputs: Any, index: Tensor | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Select samples of a batch; without an index all of them, and nothing is copied."""

    def choose(value: Any) -> Any:
        if index is None or not isinstance(value, Tensor) or not value.ndim:
            return value
        return value[index.to(value.device)]

    if isinstance(inputs, Mapping):
        return (), {name: choose(value) for name, value in inputs.items()}
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    return tuple(map(choose, given)), {}
