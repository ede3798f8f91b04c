"""The models, of random weights, and the batches they are measured on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["MODELS", "RECIPE", "Batch", "Model", "loss_of"]

Batch = dict[str, Tensor]

CLASSES = 4


@dataclass(frozen=True)
class Model:
    """A model that is measured.

    Attributes:
        title: Its name on the page.
        sizes: Of a batch of the step that is timed: items, and pixels or tokens of each.
        make: Builds it.
        batch: Draws a batch: items, pixels or tokens, a generator.
        head: The name of its new head, if it has one.
        kinds: What is measured.
        learns: Sizes of a batch, the loss to reach and the most steps, where that is measured.
    """

    title: str
    sizes: tuple[int, int]
    make: Callable[[], nn.Module]
    batch: Callable[[int, int, torch.Generator], Batch]
    head: str | None = None
    kinds: tuple[str, ...] = ("bytes", "time")
    learns: dict[str, Any] = field(default_factory=dict)


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Return the loss: the model's own on texts, cross-entropy on images."""
    if "pixels" in batch:
        return nn.functional.cross_entropy(model(batch["pixels"]), batch["labels"])
    found: Tensor = model(**batch).loss
    return found


def images(items: int, pixels: int, draw: torch.Generator) -> Batch:
    """Draw images: a coarse pattern for each class, which is the same for every seed, and noise."""
    patterns = torch.randn(CLASSES, 3, 7, 7, generator=torch.Generator().manual_seed(1))
    labels = torch.randint(CLASSES, (items,), generator=draw)
    coarse = nn.functional.interpolate(patterns[labels], (pixels, pixels), mode="nearest")
    return {
        "pixels": coarse + torch.randn(items, 3, pixels, pixels, generator=draw),
        "labels": labels,
    }


def digits(items: int, pixels: int, draw: torch.Generator) -> Batch:
    """Draw from scikit-learn's handwritten digits."""
    from sklearn.datasets import load_digits

    found = load_digits()
    chosen = torch.randint(len(found.target), (items,), generator=draw)
    shown = torch.tensor(found.images, dtype=torch.float32)[chosen, None] / 8 - 1
    return {
        "pixels": nn.functional.interpolate(shown, (pixels, pixels), mode="bilinear"),
        "labels": torch.tensor(found.target)[chosen],
    }


def texts(items: int, tokens: int, draw: torch.Generator) -> Batch:
    """Draw texts to classify: every other word is one of 20 of the class."""
    labels = torch.randint(CLASSES, (items,), generator=draw)
    words = torch.randint(1000, 30000, (items, tokens), generator=draw)
    own = 100 + 20 * labels[:, None] + torch.randint(20, (items, tokens), generator=draw)
    words[:, ::2] = own[:, ::2]
    return {"input_ids": words, "attention_mask": torch.ones_like(words), "labels": labels}


def sentences(items: int, tokens: int, draw: torch.Generator) -> Batch:
    """Draw texts to continue."""
    words = torch.randint(32000, (items, tokens), generator=draw)
    return {"input_ids": words, "attention_mask": torch.ones_like(words), "labels": words}


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        import lightning_peft  # noqa: F401  # registers glyph_vit

        given = {"pretrained": False, "num_classes": CLASSES, **options}
        found: nn.Module = timm.create_model(name, **given)
        return found

    return make


def _lite0() -> nn.Module:
    """Return the network with the statistics of its BatchNorms those of some images.

    Methods that freeze them would have features of any size otherwise.
    """
    model = _timm("tf_efficientnet_lite0")()
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    momenta = [part.momentum for part in norms]
    for part in norms:
        part.momentum = None  # the mean over all batches
    with torch.no_grad():
        for seed in range(4):
            model(images(8, 64, torch.Generator().manual_seed(100 + seed))["pixels"])
    for part, momentum in zip(norms, momenta, strict=True):
        part.momentum = momentum
    return model


def _bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig(num_labels=CLASSES))


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12}
    heads = {"num_attention_heads": 12, "num_key_value_heads": 12}
    more = {"vocab_size": 32000, "tie_word_embeddings": True, "use_cache": False}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, **more))


MODELS = {
    "vit_b16": Model(
        "ViT-B/16", (2, 160), _timm("vit_base_patch16_224", img_size=160), images, "head"
    ),
    "swin_t": Model("Swin-T", (2, 224), _timm("swin_tiny_patch4_window7_224"), images, "head.fc"),
    "convnext_t": Model("ConvNeXt-T", (2, 160), _timm("convnext_tiny"), images, "head.fc"),
    "lite0": Model("EfficientNet-Lite0", (4, 224), _lite0, images, "classifier"),
    "bert_base": Model("BERT-base size", (2, 64), _bert, texts, "classifier"),
    "llama": Model("Llama, 109 million", (2, 64), _llama, sentences),
    "glyph_vit": Model(
        "glyph_vit, pretrained",
        (32, 24),
        _timm("glyph_vit", pretrained=True, num_classes=10),
        digits,
        "head",
        ("loss",),
        {"items": 32, "size": 24, "loss": 0.5, "most": 200},
    ),
}
"""The models; the last one is small, and only there because it is pretrained."""

RECIPE: dict[str, Any] = {
    name: {"sizes": list(model.sizes), **model.learns} for name, model in MODELS.items()
}
