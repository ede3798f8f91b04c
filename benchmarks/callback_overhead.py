"""Measure the time that the callbacks of this package add to a training step under Lightning.

    python benchmarks/callback_overhead.py                    # ViT-S/16, batch 16
    python benchmarks/callback_overhead.py --profile          # and where the hooks' time goes

The cost of callbacks does not depend on the batch size, and is a thousandth of a usual step, so the
difference of two usual steps would be noise. Instead, the same network trains on one tiny image
under one trainer. PEFT, WarmupCosine, EfficiencyMonitor (without counting FLOPs, which happens
once, in the first batch) and FiniteLoss are active in one block of steps and absent in the next;
the order alternates from pair to pair. The cost is the median over the pairs, with its bootstrap
interval; the ratio is relative to a step without callbacks, of the requested size. A separate run
times the hooks. Seconds are those of this process, on one thread.
"""

from __future__ import annotations

import argparse
import cProfile
import logging
import pstats
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import timm
import torch
from figures import CLOCKS, write_figures
from peers import Classifier, lightning_steps
from rich.console import Console
from rich.table import Table
from steps import CHOICES, with_lp
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import lightning_peft as lp

HOOKS = (
    "on_train_batch_start",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_before_zero_grad",
    "on_train_batch_end",
)


def ours(options: argparse.Namespace) -> list[L.Callback]:
    """Return the callbacks of this package that a run would have."""
    return [
        lp.PEFT(lp.LoRA(rank=options.rank, targets=options.targets), head=False),
        lp.WarmupCosine(warmup=0.1),
        lp.EfficiencyMonitor(flops=False, verbose=False),
        lp.FiniteLoss(),
    ]


class Hooks:
    """Times the hooks of callbacks, from batch to batch."""

    def __init__(self, callbacks: list[L.Callback]) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        for callback in callbacks:
            for hook in HOOKS:
                if getattr(type(callback), hook) is not getattr(L.Callback, hook):
                    name = f"{type(callback).__name__}.{hook}"
                    setattr(callback, hook, self._timed(name, getattr(callback, hook)))

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = call(*args, **kwargs)
            self.seconds[name].append(time.perf_counter() - started)
            return result

        return timed

    def medians(self) -> dict[str, float]:
        """Return the median seconds of each hook, without the first two batches."""
        return {name: statistics.median(times[2:]) for name, times in self.seconds.items()}


class Switch(L.Callback):
    """Removes the other callbacks of a trainer and puts them back, block by block.

    Args:
        now: The clock.
        block: Steps of a block.
    """

    def __init__(self, now: Callable[[], float], block: int) -> None:
        self.now = now
        self.block = block
        self.starts: list[float] = []
        self._callbacks: list[L.Callback] = []
        self._schedules: list[Any] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember the callbacks that a run begins with."""
        self._callbacks = list(trainer.callbacks)
        self._schedules = list(trainer.strategy.lr_scheduler_configs)

    def on_train_batch_start(self, *args: Any) -> None:
        """Record the time."""
        self.starts.append(self.now())

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Set the callbacks of the next step, in new lists, so that this step ends unchanged."""
        company = is_with(len(self.starts) // self.block)
        trainer.callbacks = list(self._callbacks) if company else [self]
        trainer.strategy.lr_scheduler_configs = list(self._schedules) if company else []

    def differences(self) -> Tensor:
        """Return, for each pair of blocks, the extra seconds of a step with the other callbacks."""
        steps = torch.tensor(self.starts, dtype=torch.float64).diff()
        blocks = steps[: len(steps) // self.block * self.block].view(-1, self.block).mean(1)
        blocks = blocks[2 : len(blocks) // 2 * 2]  # the first pair warms up
        signs = torch.tensor([1.0 if is_with(2 + i) else -1.0 for i in range(len(blocks))])
        return (blocks * signs).view(-1, 2).sum(1)


def is_with(block: int) -> bool:
    """Whether a block has the callbacks; the pattern is with, without, without, with."""
    return block % 4 in (0, 3)


def interval_of_median(values: Tensor, replicates: int = 4000) -> tuple[float, float]:
    """Return the 95 % percentile-bootstrap interval of the median."""
    draws = torch.randint(
        len(values), (replicates, len(values)), generator=torch.Generator().manual_seed(0)
    )
    medians = values[draws].quantile(0.5, dim=1)
    low, high = medians.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high


def run_of(
    options: argparse.Namespace, size: int, batch: int, steps: int
) -> tuple[L.LightningModule, DataLoader]:
    """Return an adapted module for images of a size, and an epoch of random images."""
    torch.manual_seed(0)
    settings = {**options.model_settings, "img_size": size}
    base = timm.create_model(options.backbone, num_classes=10, **settings)
    images = torch.randn(1, 3, size, size).expand(batch * steps, -1, -1, -1)
    data = TensorDataset(images, torch.randint(0, 10, (batch * steps,)))
    return Classifier(with_lp(base, options)), DataLoader(data, batch)


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Measure a step without callbacks, the time that they add, and each of their hooks.

    Args:
        options: ``backbone``, ``model_settings`` (with ``img_size``), ``rank``, ``targets``,
            ``batch``, ``tiny``, ``pairs``, ``block``, ``steps``, ``clock``.

    Returns:
        Seconds of a ``bare`` step; seconds that the callbacks ``cost`` and their interval; the
        ``ratio`` of a step with them and its interval; seconds a step of each of the ``hooks``.
    """
    now = CLOCKS[options.clock]
    switch = Switch(now, options.block)
    steps = 2 * (options.pairs + 1) * options.block + 1
    lightning_steps(*run_of(options, options.tiny, 1, steps), switch, *ours(options), now=now)
    differences = switch.differences()
    cost = float(differences.quantile(0.5))
    low, high = interval_of_median(differences)

    callbacks = ours(options)
    hooks = Hooks(callbacks)
    lightning_steps(*run_of(options, options.tiny, 1, 3 * options.block), *callbacks, now=now)

    size = options.model_settings["img_size"]
    bare = lightning_steps(*run_of(options, size, options.batch, options.steps), now=now)
    return {
        "bare": bare,
        "cost": cost,
        "cost_interval": [low, high],
        "ratio": 1 + cost / bare,
        "interval": [1 + low / bare, 1 + high / bare],
        "hooks": hooks.medians(),
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="vit_small_patch16_224")
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--targets", choices=CHOICES, default="all-linear")
    parser.add_argument("--steps", type=int, default=7, help="bare steps, the first two not timed")
    parser.add_argument("--tiny", type=int, default=32, help="edge of the tiny image")
    parser.add_argument("--pairs", type=int, default=40, help="pairs of blocks of tiny steps")
    parser.add_argument("--block", type=int, default=10, help="steps of a block")
    parser.add_argument("--clock", choices=CLOCKS, default="cpu", help="cpu: of this process")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.model_settings = {"img_size": options.img_size}
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    profiler = cProfile.Profile()
    figures = profiler.runcall(measured, options) if options.profile else measured(options)
    if options.profile:
        pstats.Stats(profiler).sort_stats("cumulative").print_stats("lightning_peft", 25)

    console = Console()
    low, high = figures["cost_interval"]
    console.print(f"bare Lightning  {1e3 * figures['bare']:.2f} ms a step")
    console.print(
        f"the callbacks   {1e3 * figures['cost']:.3f} ms ({1e3 * low:.3f} - {1e3 * high:.3f})"
    )
    low, high = figures["interval"]
    console.print(f"ratio           {figures['ratio']:.5f} ({low:.5f} - {high:.5f})")
    table = Table("hook", "microseconds a step", "of a step")
    for name, taken in sorted(figures["hooks"].items(), key=lambda item: -item[1]):
        table.add_row(name, f"{1e6 * taken:.0f}", f"{taken / figures['bare']:.3%}")
    total = sum(figures["hooks"].values())
    table.add_row("all", f"{1e6 * total:.0f}", f"{total / figures['bare']:.3%}")
    console.print(table)
    write_figures(options, **figures)


if __name__ == "__main__":
    main()
