"""Measure the time and added memory of adapting a ViT-L, with real weights and on meta.

    python benchmarks/injection.py

Times are medians over ``--runs``, all methods interleaved in one process on one thread;
``--clock cpu`` counts the seconds of this process, for a shared machine. The import of ``peft``,
which the first of its methods in a process triggers, is timed separately. Added memory is what the
adapted model holds beyond the backbone: parameters and buffers of the adapter, and the copies of
parameters trained in place that ``disabled()`` needs.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import statistics
from collections import defaultdict
from pathlib import Path

import timm
import torch
from figures import CLOCKS, write_figures
from rich.console import Console
from rich.table import Table
from torch import nn

import lightning_peft as lp
from lightning_peft.adaptation.catalogue import methods_with_defaults
from lightning_peft.evaluation.efficiency import human_bytes


def held(model: nn.Module) -> int:
    """Return the bytes of a model's parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(t.numel() * t.element_size() for t in tensors)


def kept(adaptation: lp.Adaptation) -> int:
    """Return the bytes of the copies that an adaptation keeps of parameters trained in place."""
    return sum(t.numel() * t.element_size() for t in adaptation._originals.values())


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="vit_large_patch16_224")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="names of methods")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)

    now = CLOCKS[options.clock]
    started = now()
    importlib.import_module("peft")
    importing = now() - started

    real = timm.create_model(options.backbone, pretrained=False, num_classes=10)
    backbone = held(real)
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    added: dict[str, int] = {}
    for _ in range(options.runs):
        for name in options.only or methods_with_defaults():
            with torch.device("meta"):
                meta = timm.create_model(options.backbone, num_classes=10)
            for where, model in (("real", real), ("meta", meta)):
                gc.collect()  # what others left behind is not this method's to clear away
                started = now()
                try:
                    adaptation = lp.adapt(model, name)
                except lp.MethodError:
                    break
                seconds[name, where].append(now() - started)
                if where == "real":
                    added[name] = held(model) - backbone + kept(adaptation)
                    adaptation.unload().requires_grad_(True)

    table = Table(title=f"{options.backbone}, {human_bytes(backbone)}", title_justify="left")
    table.add_column("method")
    for column in ("real, s", "meta, s", "added", "of the backbone"):
        table.add_column(column, justify="right")
    rows = []
    for name, bytes_added in sorted(added.items(), key=lambda item: item[1]):
        times = {where: statistics.median(seconds[name, where]) for where in ("real", "meta")}
        rows.append({"method": name, **times, "added_bytes": bytes_added})
        share = f"{bytes_added / backbone:.2%}"
        figures = (f"{times['real']:.2f}", f"{times['meta']:.2f}", human_bytes(bytes_added), share)
        table.add_row(name, *figures)
    Console().print(table)
    Console().print(f"import of peft: {importing:.2f} s, once a process")
    write_figures(options, importing=importing, methods=rows)


if __name__ == "__main__":
    main()
