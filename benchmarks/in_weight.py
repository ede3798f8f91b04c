"""Measure what an update in the weight costs, beside the module's own forward and other ways.

    python benchmarks/in_weight.py --clock cpu --threads 1           # about ten minutes
    python benchmarks/in_weight.py --backbones vit --batch 8 --out in_weight.json

The attention of torch, the `qkv` of EVA and dilated convolutions are adapted with LoRA in the
weight: the forward reads `W + s B A`. The variants of each backbone are

- `limit`: everything frozen, and the gradient taken down to the input, with an attention that is
  written anew, so that it calls its layers;
- `own`: the same with the backbone's own attention, whose forward reads the weights;
- `head`: a linear probe, so the backbone's own frozen forward and nearly no backward pass;
- `weight`: LoRA in the weight of these layers;
- `beside`: the same update as `B (A x)` beside these layers, by hand, with the attention anew;
- `fast`: LoRA of lightning-peft with the fast kernels, with the attention anew;
- `others`: LoRA with the fast kernels on plain layers of the same backbone (the MLPs, or the
  convolutions that are not dilated), with the attention anew.

A dilated convolution is called, so that there is no `own` and no `fast`. torch's own attention is
slow with frozen weights: a product for each token in place of one for all.

All variants run in turn in one process. Time is the median over rounds, as a ratio to the limit, or
to `beside`, of the same round; memory is the peak of the bytes that a forward and a backward pass
allocate, as `activation_memory.py` has it.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from activation_memory import peak_bytes
from figures import CLOCKS, interleaved, timed, write_figures
from rich.console import Console
from rich.table import Table
from steps import forward_and_backward, step_of
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import lightning_peft as lp
from lightning_peft.evaluation.efficiency import human_bytes

VARIANTS = ("limit", "own", "head", "weight", "beside", "fast", "others")


class Attention(nn.Module):
    """Self-attention with the weights of ``nn.MultiheadAttention``, which calls its layers."""

    def __init__(self, own: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = own.num_heads
        self.out_proj = nn.Linear(own.embed_dim, own.embed_dim)
        self.in_proj = nn.Linear(own.embed_dim, 3 * own.embed_dim)
        self.out_proj.weight, self.out_proj.bias = own.out_proj.weight, own.out_proj.bias
        self.in_proj.weight, self.in_proj.bias = own.in_proj_weight, own.in_proj_bias

    def forward(self, query: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        """Return the attention of the queries to themselves, ``(batch, tokens, features)``."""
        batch, tokens, features = query.shape
        each = self.in_proj(query).reshape(batch, tokens, 3, self.heads, -1)
        q, k, v = each.permute(2, 0, 3, 1, 4)
        found = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out_proj(found.transpose(1, 2).reshape(batch, tokens, features)), None


class Beside(nn.Module):
    """A layer with ``B (A x)`` beside it; ``B`` is zero at first."""

    def __init__(self, base: nn.Module, rank: int) -> None:
        super().__init__()
        self.base = base
        self.down: nn.Module
        self.up: nn.Module
        if isinstance(base, nn.Conv2d):
            sizes: dict[str, Any] = {
                key: getattr(base, key) for key in ("stride", "padding", "dilation")
            }
            taps: Any = base.kernel_size
            self.down = nn.Conv2d(base.in_channels, rank, taps, **sizes, bias=False)
            self.up = nn.Conv2d(rank, base.out_channels, 1, bias=False)
        else:
            assert isinstance(base, nn.Linear)
            self.down = nn.Linear(base.in_features, rank, bias=False)
            self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output and the update's."""
        y: Tensor = self.base(x) + self.up(self.down(x))
        return y


def vit(quick: bool) -> tuple[nn.Module, int]:
    """Return torchvision's ViT-B/16 and its pixels."""
    from torchvision.models.vision_transformer import VisionTransformer, vit_b_16

    if quick:
        return VisionTransformer(32, 16, 1, 2, 32, 64, num_classes=10), 32
    return vit_b_16(num_classes=10), 224


def eva(quick: bool) -> tuple[nn.Module, int]:
    """Return timm's EVA02-S/14 and its pixels."""
    import timm

    small = {"depth": 1, "img_size": 28, "embed_dim": 32, "num_heads": 2} if quick else {}
    name = "eva02_small_patch14_224"
    return timm.create_model(name, num_classes=10, **small), 28 if quick else 224


def resnet(quick: bool) -> tuple[nn.Module, int]:
    """Return timm's ResNet-50 with dilated convolutions in its last stages, and its pixels."""
    import timm

    small = {"layers": (1, 1, 2, 1), "channels": (8, 16, 16, 32)} if quick else {}
    model = timm.create_model("resnet50", num_classes=10, output_stride=8, **small)
    return model, 32 if quick else 224


def plain_vit(model: nn.Module) -> None:
    """Write the attention anew, with the same weights."""
    for module in list(model.modules()):
        own = getattr(module, "self_attention", None)
        if own is not None:
            module.self_attention = Attention(own)


def plain_eva(model: nn.Module) -> None:
    """Let the attention call `qkv`, and add its bias afterwards: timm has a setting for it."""
    for module in model.modules():
        if hasattr(module, "qkv_bias_separate"):
            module.qkv_bias_separate = True


@dataclass(frozen=True)
class Case:
    """A backbone and its layers.

    Attributes:
        make: Makes it, and tells its pixels.
        head: Its head.
        read: The layers that are adapted in the weight, as a target; empty for dilated ones.
        ends: The ends of their names, where a model calls them.
        others: Plain layers, as a target; empty for convolutions that are not dilated.
        plain: Makes a model call the former, where that takes more than a wrapper around them.
    """

    make: Callable[[bool], tuple[nn.Module, int]]
    head: str
    read: str
    ends: tuple[str, ...]
    others: str
    plain: Callable[[nn.Module], None] | None = None


CASES = {
    "vit": Case(vit, "heads", "attention", ("in_proj", "out_proj"), "mlp", plain_vit),
    "eva": Case(eva, "head", "qkv", ("qkv",), "mlp", plain_eva),
    "resnet": Case(resnet, "fc", "", ("conv2",), ""),
}


def variants(case: Case, base: nn.Module, rank: int) -> dict[str, tuple[nn.Module, int]]:
    """Build the models to compare, which share the backbone's weights.

    Args:
        case: The backbone's layers.
        base: The backbone.
        rank: The rank of the updates.

    Returns:
        The models and the number of their adapted layers, by the variant's name.
    """
    models: dict[str, tuple[nn.Module, int]] = {}
    for name in VARIANTS:
        if name in ("own", "fast") and case.plain is None:
            continue
        own = {id(p) for p in base.get_submodule(case.head).parameters()}
        model = copy.deepcopy(base, {id(p): p for p in base.parameters() if id(p) not in own})
        if name not in ("own", "head", "weight") and case.plain is not None:
            case.plain(model)
        trained = {id(p) for p in model.get_submodule(case.head).parameters()}
        if name != "head":
            trained = set()
        layers = 0
        if name not in ("limit", "own", "head"):
            before = {id(p) for p in model.parameters()}
            layers = _adapt(name, case, model, rank)
            trained = {id(p) for p in model.parameters()} - before
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        for module in model.train().modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        models[name] = (model, layers)
    return models


def _adapt(name: str, case: Case, model: nn.Module, rank: int) -> int:
    """Adapt a model as a variant says; return how many layers are adapted."""
    places = tuple(
        key
        for key, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
        and key.endswith(tuple(f".{end}" for end in case.ends))
        and (not isinstance(layer, nn.Conv2d) or (layer.dilation != (1, 1)) == (name != "others"))
    )
    if name == "beside":
        for place in places:
            holder, _, key = place.rpartition(".")
            setattr(model.get_submodule(holder), key, Beside(model.get_submodule(place), rank))
        return len(places)
    targets = {"weight": case.read, "others": case.others}.get(name) or places
    sites = lp.adapt(model, lp.LoRA(rank=rank, targets=targets), head=False).sites
    assert all(site.in_weight == (name == "weight") for site in sites)
    return len(sites)


def measured(case: Case, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Measure every variant of a backbone.

    Args:
        case: The backbone.
        options: ``batch``, ``rank``, ``rounds``, ``clock`` and ``quick``.

    Returns:
        For each variant the number of its adapted ``layers``, the result of :func:`interleaved`,
        its peak ``bytes``, and its time and peak as ratios to those of ``beside``.
    """
    torch.manual_seed(0)
    base, pixels = case.make(options.quick)
    base.requires_grad_(False)
    images = torch.randn(options.batch, 3, pixels, pixels)
    labels = torch.randint(0, 10, (options.batch,))
    models = variants(case, base, options.rank)
    frozen = dict.fromkeys(("limit", "own"), "limit")
    steps = {
        name: step_of(frozen.get(name, name), model, images, labels)
        for name, (model, _) in models.items()
    }
    clock = CLOCKS[options.clock]
    figures = interleaved({n: timed(step, clock) for n, step in steps.items()}, options.rounds)
    for name, (model, layers) in models.items():
        given = images.clone().requires_grad_(True) if name in frozen else images
        forward_and_backward(model, given, labels)
        given.grad = None
        figures[name] |= {"layers": layers, "bytes": peak_bytes(model, given, labels)}
    beside = figures["beside"]
    for row in figures.values():
        pairs = zip(row["times"], beside["times"], strict=True)
        row["to_beside"] = statistics.median(mine / other for mine, other in pairs)
        row["bytes_to_beside"] = row["bytes"] / beside["bytes"]
    return figures


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: with --threads 1")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="tiny models, to see that it runs")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found: dict[str, Any] = {}
    for name in options.backbones:
        found[name] = measured(CASES[name], options)
        table = Table(name, "layers", "to the limit", "to beside", "peak", "to beside")
        for variant, row in found[name].items():
            low, high = row["spread"]
            table.add_row(
                variant,
                str(row["layers"]),
                f"{row['ratio']:.3f} ({low:.2f} - {high:.2f})",
                f"{row['to_beside']:.3f}",
                human_bytes(row["bytes"]),
                f"{row['bytes_to_beside']:.3f}",
            )
        Console().print(table)
    write_figures(options, figures=found)


if __name__ == "__main__":
    main()
