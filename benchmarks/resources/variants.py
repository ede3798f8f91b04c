"""What is compared on each model: eight methods, ``peft`` alone, and other trainers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

import lightning_peft as lp
from benchmarks.resources.models import MODELS, Model

__all__ = ["OF_PEFT", "TRAINERS", "build", "method_of", "methods", "rates", "variants"]

EIGHT = ("full", "linear_probe", "last_blocks", "lora", "dora", "ia3", "bitfit", "houlsby")

INSTEAD = {
    "lite0": {"houlsby": "conv_adapter", "ia3": "ssf"},  # no attention, no MLP
    "llama": {"linear_probe": "ssf", "bitfit": "norm"},  # no new head, no biases
}
"""Where a method does not apply, the one that is measured instead."""

OF_PEFT = ("lora", "dora", "ia3")

TRAINERS = ("Trainer, full", "Trainer, peft lora", "Lightning, lora")
"""What is timed on texts besides: whole steps of transformers' and Lightning's trainers."""

TEXTS = ("bert_base", "llama")

RATES = {"full": 1e-3, "linear_probe": 1e-2, "ia3": 1e-2}
"""The rates of ``conf/method``; all others have 3e-3."""


def methods(model: str) -> tuple[str, ...]:
    """Return the eight methods of a model."""
    return tuple(INSTEAD.get(model, {}).get(name, name) for name in EIGHT)


def rates(variant: str) -> float:
    """Return the learning rate of a variant."""
    return RATES.get(_method(variant), 3e-3)


def variants(model: str, kind: str) -> tuple[str, ...]:
    """Return what is measured on a model: ``"bytes"``, ``"time"`` or ``"loss"``."""
    own = methods(model)
    if kind == "loss":
        return own
    of_peft = (f"peft {name}" for name in OF_PEFT if name in own)
    found = (*own, "lora, low", *of_peft)
    if kind == "time":
        found = (*found, "full, fused", *(TRAINERS if model in TEXTS else ()))
    return found


def method_of(model: str, variant: str) -> Any:
    """Return the method of a variant as this package takes it."""
    name = _method(variant)
    if name == "ia3" and model == "convnext_t":
        return lp.IA3(targets=None)  # no keys or values: the MLPs alone
    return name


def build(model: str, base: nn.Module, variant: str) -> nn.Module:
    """Return a model of a variant in training mode, with the weights of ``base``.

    Args:
        model: A name of :data:`MODELS`.
        base: The model without an adapter. What stays frozen shares its memory.
        variant: One that runs in a plain loop.
    """
    torch.manual_seed(0)
    found = _sharing(base)
    if variant.startswith("peft "):
        found = _by_peft(MODELS[model], found, _sites(model, found, variant))
    elif _method(variant) != "full":
        memory = "low" if variant.endswith(", low") else "default"
        lp.adapt(found, method_of(model, variant), memory=memory)
    for parameter in found.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.clone()
    return found.train()


def _method(variant: str) -> str:
    return variant.removeprefix("peft ").removesuffix(", low").removesuffix(", fused")


def _sharing(base: nn.Module) -> nn.Module:
    """Return a copy whose parameters are of their own, but in the memory of the base's."""
    same = {id(p): nn.Parameter(p.data, requires_grad=True) for p in base.parameters()}
    return copy.deepcopy(base, dict(same))


def _sites(model: str, base: nn.Module, variant: str) -> dict[str, str]:
    """Return the layers that this package adapts, and the kind of each."""
    adaptation = lp.adapt(_sharing(base), method_of(model, variant))
    return {site.module: site.kind for site in adaptation.sites}


def _by_peft(model: Model, base: nn.Module, sites: dict[str, str]) -> nn.Module:
    import peft

    names, head = list(sites), [model.head] if model.head else None
    kinds = set(sites.values())
    config: Any
    if any(kind.startswith("ia3") for kind in kinds):
        inner = [name for name, kind in sites.items() if kind == "ia3 feedforward"]
        config = peft.IA3Config(
            target_modules=names, feedforward_modules=inner, modules_to_save=head
        )
    else:
        config = peft.LoraConfig(
            r=8,
            lora_alpha=8,
            target_modules=names,
            modules_to_save=head,
            use_dora=any("dora" in kind for kind in kinds),
        )
    return peft.get_peft_model(base, config)
