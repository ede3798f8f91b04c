"""The memory of one training step at its largest moment, on tensors without values."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_peft.adaptation.without_values import Processor, RunsOn
from lightning_peft.anatomy.quantised import tensors_of
from lightning_peft.evaluation.distinct_bytes import distinct_bytes

__all__ = ["called", "peak_of_step", "training_step"]


def called(model: nn.Module, inputs: Any) -> Any:
    """Call a model with a tensor, a tuple of positional or a mapping of keyword arguments."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*(inputs if isinstance(inputs, tuple) else (inputs,)))


def training_step(model: nn.Module, inputs: Any, optimizer: torch.optim.Optimizer) -> None:
    """Make a training step in Lightning's order: the old gradients live until the forward is done.

    The loss is the model's own, where its output has one, or else the mean square of its outputs.

    Args:
        model: The model.
        inputs: Its inputs, as for :func:`called`.
        optimizer: The optimizer of what is trained.
    """
    output = called(model, inputs)
    loss = getattr(output, "loss", None)
    if not isinstance(loss, Tensor):
        leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        parts = [leaf for leaf in leaves if leaf.requires_grad]
        loss = torch.stack([part.float().square().mean() for part in parts]).sum()
        del leaves, parts
    del output
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def peak_of_step(
    model: nn.Module, inputs: Any, processor: Processor, values: Mapping[Tensor, Tensor]
) -> int | None:
    """Return the bytes that exist at the largest moment of a training step with AdamW.

    Two steps are made, since the first one makes the optimizer's state. It counts tensors, not the
    workspaces inside kernels.

    Args:
        model: The model on the ``meta`` device; its gradients are deleted.
        inputs: Its inputs on that device.
        processor: Where the step will run, which decides the kernels of attention and dropout.
        values: As for :class:`RunsOn`.

    Returns:
        The bytes, weights and inputs included; ``None`` if nothing is trained, or an operation of
        the backward pass cannot be run without values.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        return None
    optimizer = torch.optim.AdamW(trained, foreach=processor == "cuda")
    tensors = [t for t in tree_leaves(inputs) if isinstance(t, Tensor)]
    existing = [*tensors_of(model), *tensors]
    with RunsOn(processor, values), Live(existing) as live:
        try:
            training_step(model, inputs, optimizer)
            live.peak = live.now
            training_step(model, inputs, optimizer)
        except (NotImplementedError, RuntimeError):
            return None
        finally:
            model.zero_grad()
    return live.peak


class Live(TorchDispatchMode):
    """Counts the bytes of all storages on the ``meta`` device that exist.

    Args:
        existing: Tensors that exist already.

    Attributes:
        now: The bytes that exist now.
        peak: The most that existed at once.
    """

    def __init__(self, existing: Iterable[Tensor]) -> None:
        super().__init__()
        existing = list(existing)
        self._alive: dict[int, Any] = {t.untyped_storage()._cdata: None for t in existing}
        self.now = self.peak = distinct_bytes(existing)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.is_meta:
                self._add(leaf)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._alive:
            self._alive[key] = weakref.ref(storage, partial(self._remove, key, size))
            self.now += size
            self.peak = max(self.peak, self.now)

    def _remove(self, key: int, size: int, reference: Any) -> None:
        del self._alive[key]
        self.now -= size
