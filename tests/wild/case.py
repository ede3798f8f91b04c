"""What is known of a foreign module: how it is built, and what a person would call its parts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

__all__ = ["Case", "batches", "fixed", "worn"]


@dataclass(frozen=True)
class Case:
    """A LightningModule of a published package, small and without pretrained weights.

    Attributes:
        name: Its class, and whatever tells it from another case of the same class.
        make: Builds the module.
        data: Builds its batches, which are used to train, to validate and to test.
        backbone: The prefixes of what a person would adapt; the empty string is everything.
        new: The prefixes of what is the task's own, randomly initialised beside a pretrained
            backbone: it has to be trained.
        words: Settings beyond ``PEFT("lora")``, if the message that the one line gave asks for a
            person to choose; what a message proposes literally is tried without being named here.
        load: Builds the arguments that ``load_from_checkpoint`` needs for this class.
        ready: Sets what a package sets on a module before it is validated; returns the module.
        own: Saves a merged module in its package's own way and returns it loaded again. Called with
            the merged module and an empty folder. Without it Lightning saves and loads.
        package: Does the whole job through the package, which makes the trainer itself: called with
            a function that makes the list of callbacks, and an empty folder; it fits, saves, loads,
            and raises if the loaded model is not the saved one.
        trainer: Further arguments of the trainer.
        epochs: Length of the run.
        falls: Why the loss need not fall, if it need not.
    """

    name: str
    make: Callable[[], Any]
    data: Callable[[], Any]
    backbone: tuple[str, ...] = ("",)
    new: tuple[str, ...] = ()
    words: Mapping[str, Any] = field(default_factory=dict)
    load: Callable[[], dict[str, Any]] = dict
    ready: Callable[[Any], Any] = lambda module: module
    own: Callable[[Any, Path], Any] | None = None
    package: Callable[[Callable[[], list[Any]], Path], None] | None = None
    trainer: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 4
    falls: str = ""


class _Kept(Dataset[Any]):
    """Gives copies: some modules write into their batches."""

    def __init__(self, found: list[Any]) -> None:
        self.found = found

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, place: int) -> Any:
        return copy.deepcopy(self.found[place])


def batches(sample: Callable[[int], Any], count: int = 8, size: int = 4, **settings: Any) -> Any:
    """Return a loader of samples in a fixed order.

    Args:
        sample: Gives the sample of a number, from torch's generator.
        count: Number of samples.
        size: Samples in a batch.
        **settings: Settings of the ``DataLoader``.
    """
    with torch.random.fork_rng():
        torch.manual_seed(1)
        samples = [sample(number) for number in range(count)]
    return DataLoader(_Kept(samples), batch_size=size, shuffle=False, **settings)


def fixed(found: Iterable[Any], count: int = 4) -> Any:
    """Return a loader that gives the first batches of another one, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        taken = [batch for batch, _ in zip(found, range(count), strict=False)]
    return DataLoader(_Kept(taken), batch_size=None, shuffle=False)


def worn(module: Any) -> Any:
    """Give norms that start at zero the scale of trained ones; return the module.

    A fresh ResNet has residual branches that do nothing, a pretrained one does not.
    """
    for part in module.modules():
        known = isinstance(part, nn.modules.batchnorm._BatchNorm) and part.affine
        if known and not part.weight.any():
            nn.init.ones_(part.weight)
    return module
