"""Find the layer size from which the fast forward of LoRA beats that of peft on a CPU.

    python benchmarks/small_layers.py

The script runs two linear layers with GELU between them, forward and backward, for several widths
and numbers of rows, with both implementations in turn, and prints lower quartiles of the thread's
time. Below the size at which they are equally fast, ``lightning_peft.kernels.fast_layers.SMALL``,
layers use peft's own forward; this is switched off here.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import peft
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import lightning_peft as lp
from lightning_peft.kernels import fast_layers


def pair(width: int) -> tuple[nn.Module, nn.Module]:
    """Return the layers of peft and the fast ones."""
    net = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
    plain = peft.get_peft_model(net, peft.LoraConfig(r=8, target_modules=["0", "2"]))
    fast = copy.deepcopy(plain)
    lp.accelerate(fast)
    return plain, fast


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    left_to_peft, fast_layers.SMALL = fast_layers.SMALL, 0
    table = Table("width", "rows", "read and written by a layer", "peft, ms", "fast, ms", "ratio")
    for width in (64, 192, 384):
        models = pair(width)
        for rows in (5, 17, 64, 197, 800):
            x = torch.randn(rows, width, requires_grad=True)
            seconds: tuple[list[float], list[float]] = ([], [])
            for _ in range(options.rounds):
                for model, times in zip(models, seconds, strict=True):
                    started = time.thread_time()
                    model(x).sum().backward()
                    times.append(time.thread_time() - started)
            plain, fast = (1000 * statistics.quantiles(times)[0] for times in seconds)
            size = 5 * width * rows
            mark = "" if size >= left_to_peft else " (left to peft)"
            table.add_row(
                str(width), str(rows), f"{size:,}{mark}", f"{plain:.2f}", f"{fast:.2f}",
                f"{fast / plain:.2f}",
            )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
