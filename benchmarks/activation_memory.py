"""Measure the peak memory of one training step, compared with peft.

    python benchmarks/activation_memory.py                           # ViT-S/16, batch 16, float32
    python benchmarks/activation_memory.py --picture memory.png --out memory.json

The figure is the peak of the bytes that torch allocates during one forward and one backward pass:
activations, gradients and temporary tensors, but not the weights, which exist before. It is read
from the record of the CPU's allocator, so it does not depend on the machine's load. The variants
are LoRA of peft and of lightning-peft with each setting of `memory`, full fine-tuning, peft under
activation checkpointing of every block (a second forward pass for the least memory), and the limit:
everything frozen and the gradient taken down to the input.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from figures import write_figures
from peaks import allocated
from rich.console import Console
from rich.table import Table
from steps import CHOICES, batch_of, forward_and_backward, variants
from torch import Tensor, nn

from lightning_peft.evaluation.efficiency import human_bytes

NAMES = ("limit", "peft, checkpointed", "lowest", "low", "lightning-peft", "high", "peft", "full")


def peak_bytes(model: nn.Module, images: Tensor, labels: Tensor) -> int:
    """Return the peak of the bytes that a step of a classifier allocates: see :func:`peak_of`."""
    return peak_of(model, partial(forward_and_backward, model, images, labels))


def peak_of(model: nn.Module, step: Callable[[], None]) -> int:
    """Return the peak of the bytes that a step allocates.

    Args:
        model: The model; its gradients are deleted before the step and exist afterwards.
        step: One forward and one backward pass.

    Returns:
        The largest sum of bytes that were allocated and not freed, from the beginning of the step.
    """
    model.zero_grad(set_to_none=True)
    return allocated(step)


def measured(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measure every variant.

    Args:
        options: ``backbone``, ``batch``, ``rank``, ``targets``.

    Returns:
        For each variant its peak in bytes, and as a ratio to that of peft.
    """
    torch.manual_seed(0)
    images, labels = batch_of(options)
    peaks = {}
    for name in NAMES:
        base, _, how = name.partition(", ")
        model = variants(options, images, [base])[base]
        if how:
            model.get_base_model().set_grad_checkpointing()  # type: ignore[operator]
        given = images.clone().requires_grad_(True) if name == "limit" else images
        forward_and_backward(model, given, labels)  # what is made at the first call only
        given.grad = None
        peaks[name] = peak_bytes(model, given, labels)
    return {name: {"bytes": p, "ratio": p / peaks["peft"]} for name, p in peaks.items()}


def draw(figures: dict[str, dict[str, float]], title: str, path: Path) -> None:
    """Draw the ratios as bars.

    Args:
        figures: The result of :func:`measured`.
        title: The title of the picture.
        path: The file to write; its ending selects the format.
    """
    from matplotlib.figure import Figure

    picture = Figure(figsize=(7, 3.2), layout="constrained")
    axes = picture.add_subplot()
    ours = ("lowest", "low", "lightning-peft", "high")
    names = list(figures)[::-1]
    labels = [f"lightning-peft, {n}" if n in ours and n != "lightning-peft" else n for n in names]
    bars = axes.barh(
        labels,
        [figures[name]["ratio"] for name in names],
        color=["#2f6db3" if name in ours else "#b9bec5" for name in names],
    )
    axes.bar_label(bars, [f"{figures[name]['ratio']:.2f}" for name in names], padding=4)
    axes.set_xlabel("peak bytes of a forward and backward pass, peft = 1")
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.1)
    picture.savefig(path, dpi=150)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="vit_small_patch16_224")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--targets", choices=CHOICES, default="all-linear")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--picture", type=Path, help="draw them")
    options = parser.parse_args()
    figures = measured(options)
    table = Table("variant", "peak", "to peft")
    for name, row in figures.items():
        table.add_row(name, human_bytes(row["bytes"]), f"{row['ratio']:.3f}")
    Console().print(table)
    write_figures(options, figures=figures)
    if options.picture:
        what = f"{options.backbone}, batch {options.batch}, LoRA of rank {options.rank}"
        draw(figures, what, options.picture)


if __name__ == "__main__":
    main()
