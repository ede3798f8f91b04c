"""What is measured: bytes of a step and of files, seconds of a step, steps to a loss."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lightning_peft as lp
from benchmarks.peaks import allocated
from benchmarks.resources.models import MODELS, Batch, loss_of
from benchmarks.resources.trainers import checkpoint_bytes, seconds_of_trainer
from benchmarks.resources.variants import TRAINERS, build, rates, variants
from lightning_peft.evaluation.efficiency import optimizer_state_bytes, tensor_bytes

__all__ = ["Steps", "bytes_of", "seconds_of_round", "stepping", "steps_of_round"]

MEAN_OF = 3
"""The loss that is to be reached is the mean over this many last steps."""


def stepping(
    model: nn.Module, batch: Batch, rate: float, fused: bool | None = None
) -> tuple[Callable[[], float], Any]:
    """Return a training step with AdamW, which returns its loss, and the optimizer."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, fused=fused)

    def step() -> float:
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step, optimizer


def bytes_of(name: str, base: nn.Module, variant: str) -> dict[str, int]:
    """Count the bytes of a variant, which do not depend on the machine's load.

    Returns:
        Parameters (``trained``, ``total``); of a step that is not the first, in bytes, ``peak``,
        everything that is there at its largest moment, and ``beyond``, less the model itself;
        ``optimizer``, its state; ``file``, what is saved of a trained model; ``checkpoint``, what
        Lightning writes to go on from.
    """
    model = build(name, base, variant)
    batch = _batch(name)
    step, optimizer = stepping(model, batch, rates(variant))
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:  # as they are after a first step, which makes the optimizer's state
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()  # what was allocated before it is recorded is not seen to go
    itself = tensor_bytes([*model.parameters(), *model.buffers()])
    state = list(optimizer.state.values())
    peak = tensor_bytes([*model.parameters(), *model.buffers(), state, batch]) + allocated(step)
    total = {id(p): p.numel() for p in model.parameters()}
    with tempfile.TemporaryDirectory() as folder:
        saved = _saved(model, variant, Path(folder))
    kept = optimizer_state_bytes(optimizer)
    del step, optimizer
    return {
        "trained": sum(p.numel() for p in trained),
        "total": sum(total.values()),
        "peak": peak,
        "beyond": peak - itself,
        "optimizer": kept,
        "file": saved,
        "checkpoint": checkpoint_bytes(name, base, variant),
    }


class Steps:
    """The steps of every variant of a model, each run once before it is timed.

    Args:
        name: The model.
        base: It, without an adapter.
        only: Of its variants, these; none for all.
    """

    def __init__(self, name: str, base: nn.Module, only: Sequence[str] = ()) -> None:
        self.timers: dict[str, Callable[[], float]] = {}
        batch = _batch(name)
        for variant in variants(name, "time"):
            if only and variant not in only:
                continue
            if variant in TRAINERS:
                self.timers[variant] = seconds_of_trainer(name, base, variant, batch)
            else:
                net, fused = build(name, base, variant), variant.endswith(", fused") or None
                step, _ = stepping(net, batch, rates(variant), fused)
                self.timers[variant] = _timed(step)
            self.timers[variant]()  # what is made at the first call only


def seconds_of_round(steps: Steps, number: int) -> dict[str, float]:
    """Run every step once, and return the seconds of this process; odd rounds run backwards."""
    names = list(steps.timers)
    gc.collect()
    return {name: steps.timers[name]() for name in (names[::-1] if number % 2 else names)}


def steps_of_round(
    name: str, base: nn.Module, seed: int
) -> tuple[dict[str, int | None], dict[str, float]]:
    """Train each method until its loss is low enough.

    Args:
        name: The model.
        base: It, without an adapter.
        seed: Of the batches, which are the same for all methods.

    Returns:
        For each method its steps, or None if they were too many, and the seconds of this process.
    """
    model = MODELS[name]
    wanted = model.learns
    draw = torch.Generator().manual_seed(seed)
    batches = [model.batch(wanted["items"], wanted["size"], draw) for _ in range(wanted["most"])]
    found: dict[str, int | None] = {}
    seconds: dict[str, float] = {}
    for variant in variants(name, "loss"):
        net = build(name, base, variant)
        optimizer = torch.optim.AdamW(
            [p for p in net.parameters() if p.requires_grad], lr=rates(variant)
        )
        began = time.process_time()
        found[variant] = _until(net, optimizer, batches, wanted["loss"])
        seconds[variant] = time.process_time() - began
        del net, optimizer
    return found, seconds


def _until(
    net: nn.Module, optimizer: torch.optim.Optimizer, batches: list[Batch], wanted: float
) -> int | None:
    losses: list[float] = []
    for number, batch in enumerate(batches, 1):
        optimizer.zero_grad()
        loss = loss_of(net, batch)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if number >= MEAN_OF and sum(losses[-MEAN_OF:]) / MEAN_OF <= wanted:
            return number
    return None


def _batch(name: str) -> Batch:
    model = MODELS[name]
    return model.batch(*model.sizes, torch.Generator().manual_seed(0))


def _timed(step: Callable[[], object]) -> Callable[[], float]:
    def seconds() -> float:
        began = time.process_time()
        step()
        return time.process_time() - began

    return seconds


def _saved(model: Any, variant: str, folder: Path) -> int:
    """Save what was trained as one would, and return the size of all files."""
    adaptation = lp.find_adaptation(model)
    if adaptation is not None:
        adaptation.save(folder / "adapter")
    elif variant.startswith("peft "):
        model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    else:
        torch.save(model.state_dict(), folder / "weights.pt")
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
