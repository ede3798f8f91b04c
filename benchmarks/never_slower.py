"""Compare a step of LoRA with peft's where there is little to gain: small, narrow, of high rank.

    python benchmarks/never_slower.py                        # every case
    python benchmarks/never_slower.py --only lite bf16 --rounds 40

Layers with few rows, short inputs, ranks of 32 and 64, 1 x 1 convolutions and bfloat16.
(Depthwise ones neither adapts: for peft the rank would have to be a multiple of their groups.) Both
kinds of LoRA are at the same layers of the same weights and run in turn, in one process on one
thread, every second round the other way around. Seconds are those of the process; a figure is
the median of the ratios in each round, with their quartiles. The step is forward and backward
without an optimizer, which is the same for both.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import timm
import torch
from figures import write_figures
from rich.console import Console
from rich.table import Table
from torch import nn

import lightning_peft as lp

Case = tuple[Callable[[], nn.Module], Callable[[], Any], int, torch.dtype]


def mlp(width: int) -> nn.Module:
    """Return three MLPs of a transformer's shape, one after the other."""
    layers = []
    for _ in range(3):
        layers += [nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)]
    return nn.Sequential(*layers)


def vit(pixels: int) -> nn.Module:
    """Return a ViT-Ti/16 of four blocks."""
    return timm.create_model("vit_tiny_patch16_224", depth=4, img_size=pixels, num_classes=10)


def convnext() -> nn.Module:
    """Return a small ConvNeXt, whose MLPs are 1 x 1 convolutions."""
    return timm.create_model("convnext_atto", depths=(1, 1, 2, 1), num_classes=10)


def lite() -> nn.Module:
    """Return an EfficientNet-Lite0 whose BatchNorms do not depend on the batch."""
    return timm.create_model("tf_efficientnet_lite0", num_classes=10).eval()


def llama() -> nn.Module:
    """Return a Llama of four layers."""
    from transformers import LlamaConfig, LlamaModel

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4}
            heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 1000}
            self.model = LlamaModel(LlamaConfig(**sizes, **heads, use_cache=False))

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.model(ids).last_hidden_state

    return Last()


def cases() -> dict[str, Case]:
    """Return what is compared: the model, its input, the rank, the dtype."""
    single, half = torch.float32, torch.bfloat16
    found: dict[str, Case] = {}
    for width, rows in ((64, 16), (64, 256), (192, 16), (192, 200), (384, 16), (384, 64)):
        found[f"mlp of {width}, {rows} rows"] = (
            lambda w=width: mlp(w), lambda w=width, r=rows: torch.randn(r, w), 8, single,
        )  # fmt: skip
    for rank in (8, 32, 64):
        for batch, pixels in ((1, 32), (8, 32), (8, 96)):
            tokens = (pixels // 16) ** 2 + 1
            found[f"vit, {batch} x {tokens} tokens, rank {rank}"] = (
                lambda p=pixels: vit(p),
                lambda b=batch, p=pixels: torch.randn(b, 3, p, p), rank, single,
            )  # fmt: skip
    small = lambda: torch.randn(2, 3, 64, 64)  # noqa: E731
    for rank in (8, 32):
        found[f"convnext, rank {rank}"] = (convnext, small, rank, single)
        found[f"lite, rank {rank}"] = (lite, small, rank, single)
    words = lambda: torch.randint(1000, (2, 64))  # noqa: E731
    for name, make, given in (("vit", lambda: vit(96), lambda: torch.randn(8, 3, 96, 96)),
                              ("llama", llama, words), ("convnext", convnext, small),
                              ("lite", lite, small)):  # fmt: skip
        found[f"{name}, bf16"] = (make, given, 8, half)
    found["llama"] = (llama, words, 8, single)
    return found


def pair(case: Case) -> tuple[nn.Module, nn.Module, Any]:
    """Return the model of peft, ours of the same weights, and an input."""
    make, given, rank, dtype = case
    torch.manual_seed(0)
    base = make().to(dtype)
    method = lp.LoRA(rank=rank)
    names = [site.module for site in lp.adapt(copy.deepcopy(base), method, head=False).sites]
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=names)
    theirs = peft.get_peft_model(base, config)
    ours = copy.deepcopy(theirs)
    lp.accelerate(ours)
    x = given()
    return theirs, ours, x.to(dtype) if x.is_floating_point() else x


def step(model: nn.Module, x: Any) -> None:
    """Run forward and backward."""
    model.zero_grad(set_to_none=True)
    model(x).float().square().mean().backward()


def measured(case: Case, rounds: int) -> dict[str, Any]:
    """Time a case.

    Returns:
        The median ``seconds`` of a step of peft, the ``ratio`` of ours and its ``quartiles``.
    """
    theirs, ours, x = pair(case)
    taken: dict[str, list[float]] = {"theirs": [], "ours": []}
    for number in range(rounds + 2):
        order = [("theirs", theirs), ("ours", ours)]
        for name, model in order[:: 1 if number % 2 else -1]:
            began = time.process_time()
            step(model, x)
            if number >= 2:
                taken[name].append(time.process_time() - began)
    ratios = [a / b for a, b in zip(taken["ours"], taken["theirs"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    seconds = statistics.median(taken["theirs"])
    return {"seconds": seconds, "ratio": middle, "quartiles": [low, high]}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[""], help="beginnings or ends of names")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("case", "peft, ms", "ours to peft", "quartiles")
    figures = {}
    for name, case in cases().items():
        if not any(name.startswith(word) or name.endswith(word) for word in options.only):
            continue
        row = figures[name] = measured(case, options.rounds)
        low, high = row["quartiles"]
        values = (f"{1000 * row['seconds']:.1f}", f"{row['ratio']:.3f}", f"{low:.2f} - {high:.2f}")
        table.add_row(name, *values)
        print(name, *values, flush=True)
    Console().print(table)
    write_figures(options, figures=figures)


if __name__ == "__main__":
    main()
