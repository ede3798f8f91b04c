"""A training step under Lightning with the callbacks of this package, beside one without.

    python benchmarks/callback_overhead.py                    # ViT-S/16, batch 16
    python benchmarks/callback_overhead.py --profile          # and where the hooks' time goes

Both trainers train the same adapted model. One has no callbacks but a clock; the other has PEFT,
WarmupCosine, EfficiencyMonitor (without its count of FLOPs, which is made once, in the first batch)
and FiniteLoss. Their epochs take turns in one process, the one that begins changing every time, and
a ratio is of the medians of one pair of epochs. The hooks themselves are timed too: their seconds a
step are the callbacks' own cost, whatever else the machine does meanwhile.
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
from lora_step import CHOICES, with_lp
from peers import Classifier, lightning_steps
from rich.console import Console
from rich.table import Table
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
    """Make the callbacks of this package that a run would have."""
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
        """Give the median seconds of each hook, the first two batches left out."""
        return {name: statistics.median(times[2:]) for name, times in self.seconds.items()}


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Train in turn with the callbacks and without.

    Args:
        options: ``backbone``, ``model_settings``, ``rank``, ``targets``, ``batch``, ``steps``,
            ``rounds``, ``clock``.

    Returns:
        Seconds of a step ``bare`` and ``with`` the callbacks, their ``ratio`` with its ``spread``,
        and the seconds a step of each of the ``hooks``.
    """
    torch.manual_seed(0)
    base = timm.create_model(options.backbone, num_classes=10, **options.model_settings)
    module = Classifier(with_lp(base, options))
    size = base.pretrained_cfg["input_size"]
    size = (3, *(options.model_settings.get("img_size", edge) for edge in size[1:]))
    count = options.batch * options.steps
    data = TensorDataset(torch.randn(count, *size), torch.randint(0, 10, (count,)))
    loader = DataLoader(data, options.batch)

    seconds: dict[str, list[float]] = {"bare": [], "with": []}
    hooks: list[dict[str, float]] = []
    for number in range(options.rounds + 1):
        for name in ("bare", "with") if number % 2 else ("with", "bare"):
            callbacks = ours(options) if name == "with" else []
            clock = Hooks(callbacks)
            taken = lightning_steps(module, loader, *callbacks, now=CLOCKS[options.clock])
            if number:
                seconds[name].append(taken)
                if callbacks:
                    hooks.append(clock.medians())
    ratios = [b / a for a, b in zip(seconds["bare"], seconds["with"], strict=True)]
    return {
        **{name: statistics.median(times) for name, times in seconds.items()},
        "ratio": statistics.median(ratios),
        "spread": [min(ratios), max(ratios)],
        "hooks": {key: statistics.median(h[key] for h in hooks) for key in hooks[0]},
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="vit_small_patch16_224")
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--targets", choices=CHOICES, default="all-linear")
    parser.add_argument("--steps", type=int, default=10, help="batches of an epoch")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of epochs")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: of this process; with --threads 1"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
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

    low, high = figures["spread"]
    console = Console()
    console.print(f"bare Lightning      {1e3 * figures['bare']:8.2f} ms a step")
    console.print(f"with the callbacks  {1e3 * figures['with']:8.2f} ms a step")
    console.print(f"ratio               {figures['ratio']:.4f} ({low:.4f} - {high:.4f})")
    table = Table("hook", "microseconds a step", "of a step")
    for name, taken in sorted(figures["hooks"].items(), key=lambda item: -item[1]):
        table.add_row(name, f"{1e6 * taken:.0f}", f"{taken / figures['bare']:.3%}")
    total = sum(figures["hooks"].values())
    table.add_row("all", f"{1e6 * total:.0f}", f"{total / figures['bare']:.3%}")
    console.print(table)
    write_figures(options, **figures)


if __name__ == "__main__":
    main()
