"""Compare a training step of LoRA with peft, full fine-tuning and the limit.

    python benchmarks/lora_step.py                       # ViT-S/16, batch 16, float32
    python benchmarks/lora_step.py --targets qkv --optimizer
    python benchmarks/lora_step.py --compile --peers     # torch.compile, and other trainers

The limit is the backbone with everything frozen and the gradient taken down to its input, which is
the least work of any method that trains parameters in the first block. All variants run in turn in
one process, so that disturbances of the machine affect all of them; figures are medians over
rounds, as ratios to the limit of the same round. `low`, `lowest` and `high` are lightning-peft with
these settings of `memory`. Peers (`benchmarks/peers.py`) have their own loop and always step an
optimizer: compare them with the others under `--optimizer`.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import torch
from figures import CLOCKS, interleaved, timed, write_figures
from rich.console import Console
from rich.table import Table
from steps import CHOICES, VARIANTS, batch_of, step_of, variants
from torch import nn


def compiled(models: dict[str, nn.Module], images: torch.Tensor) -> dict[str, nn.Module]:
    """Compile both kinds of LoRA; print a reason and leave out what cannot be compiled."""
    found = {}
    for name in ("lightning-peft", "peft"):
        model = torch.compile(copy.deepcopy(models[name]))
        try:
            model(images).sum().backward()  # as it will be used: a whole batch, with gradients
        except Exception as error:  # whatever the toolchain lacks surfaces as anything
            reason = str(error).strip().splitlines() or [""]
            print(f"{name}, compiled: left out, {type(error).__name__}: {reason[0]}")
            continue
        found[f"{name}, compiled"] = model
    return found


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="vit_small_patch16_224")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--targets", choices=CHOICES, default="all-linear")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--optimizer", action="store_true", help="AdamW's step is in the time")
    parser.add_argument("--compile", action="store_true", help="both kinds of LoRA compiled too")
    parser.add_argument("--peers", action="store_true", help="other trainers too (extra 'bench')")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, help="of the variants, these")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: of this process; with --threads 1"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    images, labels = batch_of(options)
    names = dict.fromkeys(["limit", *(options.only or VARIANTS)])
    models = variants(options, images, names)
    if options.compile:
        models.update(compiled(variants(options, images, ("lightning-peft", "peft")), images))
    timers: dict[str, Callable[[], float]] = {}
    for name, model in models.items():
        step = step_of(name, model, images, labels, options.optimizer)
        timers[name] = timed(step, CLOCKS[options.clock])
    if options.peers:
        from peers import peers

        timers.update(peers(options, images, labels, CLOCKS[options.clock]))
    figures = interleaved(timers, options.rounds)

    table = Table("variant", "seconds a step", "to the limit", "spread")
    for name, row in figures.items():
        low, high = row["spread"]
        values = (f"{row['seconds']:.3f}", f"{row['ratio']:.3f}")
        table.add_row(name, *values, f"{low:.3f} - {high:.3f}")
    Console().print(table)
    write_figures(options, figures=figures)


if __name__ == "__main__":
    main()
