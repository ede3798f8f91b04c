"""The models that are ranked and then fine-tuned: real weights, cut ones, random ones."""

from __future__ import annotations

from typing import Any

from torch import nn

from benchmarks.evidence.models import lite_weights, sentence_model
from benchmarks.evidence.tasks import Task
from benchmarks.evidence.train import RECIPE, WORK
from lightning_peft.anatomy.wide import narrowed

__all__ = ["CANDIDATES", "build", "data_changes", "is_random"]

_LITES = tuple(f"tf_efficientnet_lite{number}" for number in (0, 1, 2))

CANDIDATES: dict[str, tuple[str, ...]] = {
    "cells": (
        *_LITES,
        *(f"{_LITES[0]}@{level}" for level in (3, 2, 1)),
        *(f"{name}@3" for name in _LITES[1:]),
        "glyph_vit",
        f"{_LITES[0]}:random",
        "glyph_vit:random",
        "vit_tiny_patch16_224:random",
    ),
    "reviews": (
        *(f"minilm@{layers}" for layers in range(6, 0, -1)),
        "minilm@6:random",
        "minilm@3:random",
    ),
}
"""``@3`` ends at timm's feature level 3 of 0 to 4, or behind the third layer of an encoder."""


def is_random(name: str) -> bool:
    """Whether a candidate has random weights."""
    return name.endswith(":random")


def build(task: Task, name: str) -> nn.Module:
    """Build a candidate with a new head; what is random follows the global random state.

    Args:
        task: The task.
        name: One of :data:`CANDIDATES`.

    Returns:
        A module that maps a batch to logits ``(B, K)``.
    """
    given = name.removesuffix(":random")
    model, _, end = given.partition("@")
    if task.name == "reviews":
        return _encoder(len(task.classes), int(end), not is_random(name))
    return _network(len(task.classes), model, int(end) if end else None, not is_random(name))


def data_changes(task: str, name: str) -> dict[str, Any]:
    """Return what a candidate changes of the data: how its images are prepared."""
    if task == "reviews":
        return {}
    model, _, _ = name.removesuffix(":random").partition("@")
    # the Lites and the ViT at the size of the evidence; the small one has its own
    size = None if model == "glyph_vit" else RECIPE[task]["pixels"]
    return {"backbone": model, "image_size": size}


def _encoder(classes: int, layers: int, pretrained: bool) -> nn.Module:
    model = sentence_model(classes, pretrained)
    encoder: Any = model.encoder
    encoder.encoder.layer = encoder.encoder.layer[:layers]
    encoder.config.num_hidden_layers = layers
    return model


def _network(classes: int, name: str, level: int | None, pretrained: bool) -> nn.Module:
    import timm

    options: dict[str, Any] = {"pretrained": pretrained}
    if name.startswith("vit_"):
        options["img_size"] = RECIPE["cells"]["pixels"]
    if pretrained and name in _LITES:
        file = lite_weights(WORK / "weights", _LITES.index(name))
        options["pretrained_cfg_overlay"] = {"file": str(file)}
    model: Any = timm.create_model(name, num_classes=classes, **options)
    if level is not None:
        model.prune_intermediate_layers(indices=[level], prune_norm=True, prune_head=True)
        model.reset_classifier(classes, "avg")
    return narrowed(model)
