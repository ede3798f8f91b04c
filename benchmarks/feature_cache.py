"""Compare epochs with the frozen first part cached and epochs without the cache.

    python benchmarks/feature_cache.py                      # ViT-S/16, 64 images
    python benchmarks/feature_cache.py --epochs 12          # a short form

The runs are a linear probe, one that trains the last quarter of the blocks, and one with LoRA in
them, on random weights and images, which take as long as real ones. Counted in matrix products, a
block trained in full costs three and a block with LoRA two where a frozen block costs one, so that
the last quarter can gain at most a factor of 2.0 and 2.5. The two variants are trained in turn, an
epoch at a time, in one process, so that disturbances of the machine affect both. An epoch includes
the loader, forward, backward and optimizer, and the cache's hashes and copies. The ratio of a run
of N epochs counts the first epoch, which computes and compares everything, and N - 1 epochs at the
median of the others; this is the only extrapolation, if fewer epochs are timed.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from pathlib import Path
from typing import Any

import timm
import torch
from figures import write_figures
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_peft as lp
from lightning_peft.anatomy import anatomy
from lightning_peft.caching import PrefixCache

CASES = ("linear_probe", "last_quarter", "lora_last_quarter")


class Run:
    """One model in training, an epoch at a time."""

    def __init__(
        self, model: nn.Module, data: TensorDataset, options: argparse.Namespace, cached: bool
    ) -> None:
        self.clock = time.process_time if options.clock == "cpu" else time.perf_counter
        self.model = model.train()
        self.loader = DataLoader(
            data, options.batch, shuffle=True, generator=torch.Generator().manual_seed(0)
        )
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-3)
        self.cache = PrefixCache(model) if cached else None
        if self.cache is not None:
            self.cache.install()

    def epoch(self) -> float:
        """Train for an epoch and return its seconds."""
        started = self.clock()
        for images, labels in self.loader:
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(images), labels).backward()
            self.optimizer.step()
        return self.clock() - started


def measure(options: argparse.Namespace, base: nn.Module, method: lp.Method) -> dict[str, Any]:
    """Train with and without the cache in turn, and return the figures."""
    size = timm.get_pretrained_cfg(options.backbone).input_size
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(options.images, *size, generator=generator)
    data = TensorDataset(images, torch.randint(0, 10, (options.images,), generator=generator))
    torch.manual_seed(2)
    model = copy.deepcopy(base)
    lp.adapt(model, method)
    plain = Run(copy.deepcopy(model), data, options, cached=False)
    cached = Run(model, data, options, cached=True)
    times: dict[str, list[float]] = {"plain": [], "cached": []}
    for _ in range(options.epochs):
        times["plain"].append(plain.epoch())
        times["cached"].append(cached.epoch())
    # the second epoch of the cached run computes one batch again, to compare
    later = {name: statistics.median(seconds[2:]) for name, seconds in times.items()}
    ratios = [p / c for p, c in zip(times["plain"][2:], times["cached"][2:], strict=True)]
    whole = {
        name: sum(seconds[:2]) + (options.run_epochs - 2) * later[name]
        for name, seconds in times.items()
    }
    state, other = plain.model.state_dict(), model.state_dict()
    assert cached.cache is not None
    return {
        "where": cached.cache.where,
        "seconds_an_epoch": later,
        "first_epochs": {name: seconds[:2] for name, seconds in times.items()},
        "ratio_an_epoch": statistics.median(ratios),
        "spread": [min(ratios), max(ratios)],
        "ratio_of_the_run": whole["plain"] / whole["cached"],
        "bytes_kept": cached.cache.store.nbytes,
        "same_weights": all(torch.equal(value, other[name]) for name, value in state.items()),
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="vit_small_patch16_224")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=50, help="epochs to time, 3 or more")
    parser.add_argument("--run-epochs", type=int, default=50, help="epochs of the run in the ratio")
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: seconds of this process, summed over its threads, where the machine is shared",
    )
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    if options.epochs < 3:
        parser.error("expected --epochs of 3 or more: the first two are not like the others")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    base = timm.create_model(options.backbone, num_classes=10)
    quarter = max(len(anatomy(base).blocks) // 4, 1)
    methods = {
        "linear_probe": lp.LinearProbe(),
        "last_quarter": lp.LastBlocks(n=quarter),
        "lora_last_quarter": lp.LoRA(layers=f"last:{quarter}"),
    }
    table = Table("run", "without, s", "cached, s", "ratio", "spread", "whole run", "same weights")
    figures = {}
    for name, method in methods.items():
        if options.only not in (None, name):
            continue
        figures[name] = found = measure(options, base, method)
        low, high = found["spread"]
        table.add_row(
            name,
            f"{found['seconds_an_epoch']['plain']:.3f}",
            f"{found['seconds_an_epoch']['cached']:.3f}",
            f"{found['ratio_an_epoch']:.2f}",
            f"{low:.2f} - {high:.2f}",
            f"{found['ratio_of_the_run']:.2f}",
            str(found["same_weights"]),
        )
    Console().print(table)
    write_figures(options, figures=figures)


if __name__ == "__main__":
    main()
