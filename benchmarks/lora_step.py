"""A training step of LoRA beside that of peft, of full fine-tuning, and the limit.

    python benchmarks/lora_step.py                       # ViT-S/16, batch 16, float32
    python benchmarks/lora_step.py --targets qkv --optimizer
    python benchmarks/lora_step.py --compile --peers     # torch.compile, and other trainers

The limit is the backbone with everything frozen and the gradient taken down to its input: the work
that any method has whose trained parameters begin in the first block. All variants run in turn in
one process, so that what disturbs the machine disturbs them alike; figures are medians over rounds,
as ratios to the limit of the same round. `low`, `lowest` and `high` are lightning-peft with these
settings of `memory`. Peers (`benchmarks/peers.py`) bring their own loop and always step an
optimizer: compare them with the others under `--optimizer`.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import peft
import timm
import torch
from figures import CLOCKS, interleaved, timed, write_figures
from rich.console import Console
from rich.table import Table
from torch import nn

import lightning_peft as lp

CHOICES = {"all-linear": ["qkv", "attn.proj", "fc1", "fc2"], "qkv": ["qkv"]}
VARIANTS = ("limit", "lightning-peft", "low", "lowest", "high", "peft", "full")


def forward_and_backward(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """One step without the optimizer, whose cost is that of the trained parameters."""
    model.zero_grad(set_to_none=True)
    nn.functional.cross_entropy(model(images), labels).backward()


def with_peft(base: nn.Module, options: argparse.Namespace) -> nn.Module:
    """Adapt a copy of a backbone by peft alone."""
    names = CHOICES[options.targets]
    config = peft.LoraConfig(r=options.rank, lora_alpha=options.rank, target_modules=names)
    return peft.get_peft_model(copy.deepcopy(base), config)


def with_lp(base: nn.Module, options: argparse.Namespace, memory: str = "default") -> nn.Module:
    """Adapt a copy of a backbone by lightning-peft, at the same places."""
    model = copy.deepcopy(base)
    method = lp.LoRA(rank=options.rank, targets=options.targets)
    lp.adapt(model, method, head=False, memory=memory)
    return model


def variants(
    options: argparse.Namespace, images: torch.Tensor, names: Iterable[str] = VARIANTS
) -> dict[str, nn.Module]:
    """Build what is compared, on the same weights.

    Args:
        options: ``backbone``, ``rank`` and ``targets``; ``model_settings`` for timm, if any.
        images: Their dtype is the models'.
        names: Which of :data:`VARIANTS`.

    Returns:
        The models by name.
    """
    settings = getattr(options, "model_settings", {})
    base = timm.create_model(options.backbone, num_classes=10, **settings).to(images.dtype)
    make = {
        "limit": lambda: copy.deepcopy(base).requires_grad_(False),
        "lightning-peft": lambda: with_lp(base, options),
        **{m: partial(with_lp, base, options, m) for m in ("low", "lowest", "high")},
        "peft": lambda: with_peft(base, options),
        "full": lambda: copy.deepcopy(base),
    }
    return {name: make[name]() for name in names}


def batch_of(options: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Make random images of the backbone's size, and class numbers."""
    channels, *edges = timm.get_pretrained_cfg(options.backbone).input_size
    edge = getattr(options, "model_settings", {}).get("img_size", edges[0])
    return torch.randn(options.batch, channels, edge, edge), torch.randint(10, (options.batch,))


def compiled(models: dict[str, nn.Module], images: torch.Tensor) -> dict[str, nn.Module]:
    """Compile both kinds of LoRA; without a compiler, say why not and give nothing."""
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


def step_of(
    name: str,
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    optimizer: bool = False,
) -> Callable[[], None]:
    """Make the step that is timed.

    Args:
        name: Of the variant; for ``"limit"`` the input takes a gradient.
        model: The variant.
        images: The batch.
        labels: Class numbers.
        optimizer: Whether AdamW makes a step, where there is anything to train.

    Returns:
        The step.
    """
    # what is frozen throughout still passes the gradient on, as below an adapted first block
    given = images.clone().requires_grad_(True) if name == "limit" else images
    trained = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(trained, lr=1e-4) if optimizer and trained else None

    def step() -> None:
        given.grad = None
        forward_and_backward(model, given, labels)
        if adam is not None:
            adam.step()

    return step


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
