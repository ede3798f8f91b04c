"""The training step that several benchmarks time, and its variants."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterable
from functools import partial

import peft
import timm
import torch
from torch import nn

import lightning_peft as lp

CHOICES = {"all-linear": ["qkv", "attn.proj", "fc1", "fc2"], "qkv": ["qkv"]}
VARIANTS = ("limit", "lightning-peft", "low", "lowest", "high", "peft", "full")


def forward_and_backward(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Run one step without the optimizer, whose cost depends on the trained parameters."""
    model.zero_grad(set_to_none=True)
    nn.functional.cross_entropy(model(images), labels).backward()


def with_peft(base: nn.Module, options: argparse.Namespace) -> nn.Module:
    """Return a copy of a backbone adapted by peft alone."""
    names = CHOICES[options.targets]
    config = peft.LoraConfig(r=options.rank, lora_alpha=options.rank, target_modules=names)
    return peft.get_peft_model(copy.deepcopy(base), config)


def with_lp(base: nn.Module, options: argparse.Namespace, memory: str = "default") -> nn.Module:
    """Return a copy of a backbone adapted by lightning-peft at the same places."""
    model = copy.deepcopy(base)
    method = lp.LoRA(rank=options.rank, targets=options.targets)
    lp.adapt(model, method, head=False, memory=memory)
    return model


def variants(
    options: argparse.Namespace, images: torch.Tensor, names: Iterable[str] = VARIANTS
) -> dict[str, nn.Module]:
    """Build the models to compare, with the same weights.

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
    """Return random images of the backbone's size, and class numbers."""
    channels, *edges = timm.get_pretrained_cfg(options.backbone).input_size
    edge = getattr(options, "model_settings", {}).get("img_size", edges[0])
    return torch.randn(options.batch, channels, edge, edge), torch.randint(10, (options.batch,))


def step_of(
    name: str,
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    optimizer: bool = False,
) -> Callable[[], None]:
    """Return the step to time.

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
