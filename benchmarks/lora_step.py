"""A training step of LoRA beside that of peft, of full fine-tuning, and the limit.

    python benchmarks/lora_step.py                       # ViT-S/16, batch 16, float32
    python benchmarks/lora_step.py --targets qkv

The limit is the backbone with everything frozen and the gradient taken down to its input: the work
that any method has whose trained parameters begin in the first block. All variants run in turn in
one process, so that what disturbs the machine disturbs them alike; figures are medians over rounds,
as ratios to the limit.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import peft
import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import lightning_peft as lp


def forward_and_backward(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """One step without the optimizer, whose cost is that of the trained parameters."""
    model.zero_grad(set_to_none=True)
    nn.functional.cross_entropy(model(images), labels).backward()


def variants(options: argparse.Namespace, images: torch.Tensor) -> dict[str, nn.Module]:
    """Build what is compared, on the same weights."""
    base = timm.create_model(options.backbone, num_classes=10).to(images.dtype)
    with_peft, with_lp, frozen = (copy.deepcopy(base) for _ in range(3))
    names = ["qkv"] if options.targets == "qkv" else ["qkv", "attn.proj", "fc1", "fc2"]
    config = peft.LoraConfig(r=options.rank, lora_alpha=options.rank, target_modules=names)
    with_peft = peft.get_peft_model(with_peft, config)
    lp.adapt(with_lp, lp.LoRA(rank=options.rank, targets=options.targets), head=False)
    frozen.requires_grad_(False)
    return {"limit": frozen, "lightning-peft": with_lp, "peft": with_peft, "full": base}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="vit_small_patch16_224")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--targets", choices=["all-linear", "qkv"], default="all-linear")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    size = timm.get_pretrained_cfg(options.backbone).input_size
    images = torch.randn(options.batch, *size)
    labels = torch.randint(0, 10, (options.batch,))
    models = variants(options, images)

    def step(name: str) -> Callable[[], None]:
        # what is frozen throughout still passes the gradient on, as below an adapted first block
        given = images.clone().requires_grad_(True) if name == "limit" else images
        return lambda: forward_and_backward(models[name], given, labels)

    steps = {name: step(name) for name in models}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for number in range(options.rounds + 1):
        for name, run in steps.items():
            started = time.perf_counter()
            run()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - started)

    table = Table("variant", "seconds a step", "to the limit", "spread")
    figures = {}
    for name, times in seconds.items():
        ratios = [mine / limit for mine, limit in zip(times, seconds["limit"], strict=True)]
        figures[name] = {
            "seconds": statistics.median(times),
            "ratio": statistics.median(ratios),
            "spread": [min(ratios), max(ratios)],
        }
        low, high = figures[name]["spread"]
        row = (f"{figures[name]['seconds']:.3f}", f"{figures[name]['ratio']:.3f}")
        table.add_row(name, *row, f"{low:.3f} - {high:.3f}")
    Console().print(table)
    if options.out:
        about = {k: v for k, v in vars(options).items() if k != "out"}
        options.out.write_text(json.dumps({**about, "figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
