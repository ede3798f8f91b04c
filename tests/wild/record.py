"""What a run did: its losses, its weights before and after, what it said."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["Record", "listen", "make_recorder", "plain_name"]

_INSERTED = {"base_layer", "original_module", "modules_to_save", "default", "parametrizations"}


class Record:
    """Losses by epoch, and parameters by name."""

    def __init__(self) -> None:
        self.losses: dict[int, list[float]] = {}
        self.before: dict[str, Tensor] = {}
        self.trains: dict[str, bool] = {}
        self.after: dict[str, Tensor] = {}
        self.outputs: list[float] = []

    def changed(self, name: str) -> bool:
        """Whether the run changed a parameter."""
        return name in self.after and not _same(self.before[name], self.after[name])

    def mean_loss(self, epoch: int) -> float:
        """Return the mean of an epoch's losses."""
        found = self.losses[sorted(self.losses)[epoch]]
        return sum(found) / len(found)


def make_recorder(pl: Any, record: Record) -> Any:
    """Return a callback that fills a record; its class is of the namespace of the trainer."""

    class Recorder(pl.Callback):  # type: ignore[misc, name-defined]
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            for name, parameter in pl_module.named_parameters(remove_duplicate=False):
                record.before[name] = parameter.detach().clone()
                record.trains[name] = parameter.requires_grad

        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, *rest: Any
        ) -> None:
            loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
            if isinstance(loss, Tensor):
                record.losses.setdefault(trainer.current_epoch, []).append(float(loss.detach()))

        def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
            for name, parameter in pl_module.named_parameters(remove_duplicate=False):
                record.after[name] = parameter.detach().clone()

        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.state.fn == "validate":  # injection has drawn numbers since the run began
                pl.seed_everything(2, verbose=False)

        def on_validation_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, *rest: Any
        ) -> None:
            record.outputs += _numbers(outputs)

    return Recorder()


def _numbers(value: Any) -> list[float]:
    leaves = torch.utils._pytree.tree_leaves(value)
    return [
        float(leaf.double().mean())
        for leaf in leaves
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(torch.all((one == other) | (one != one)))


def plain_name(name: str) -> str:
    """Return the name that a parameter has in the module without an adapter."""
    parts = name.split(".")
    if "parametrizations" in parts and parts[-1] == "original":
        parts.pop()
    return ".".join(part for part in parts if part not in _INSERTED)


class _Lines(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "PEFT" in message and message not in self.lines:
            self.lines.append(message)


@contextmanager
def listen() -> Iterator[list[str]]:
    """Collect what the callback says and warns of."""
    lines: list[str] = []
    handler = _Lines(lines)
    names = ("lightning.pytorch.utilities.rank_zero", "pytorch_lightning.utilities.rank_zero")
    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lines
    for logger in loggers:
        logger.removeHandler(handler)
    told = [str(warning.message) for warning in caught]
    lines += dict.fromkeys(f"warning: {text}" for text in told if text.startswith("PEFT"))
