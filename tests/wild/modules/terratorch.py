"""Remote sensing: TerraTorch's tasks, an encoder, a neck and a decoder."""

import torch
from terratorch import tasks

from tests.wild.case import Case, batches, worn

DISTRIBUTION = "terratorch"


def _arguments(**settings):
    found = {
        "backbone": "timm_resnet18", "backbone_pretrained": False, "decoder": "UNetDecoder",
        "decoder_channels": [32, 16, 8, 8], "head_dropout": 0.1,
        "necks": [{"name": "SelectIndices", "indices": [0, 1, 2, 3]}],
    } | settings  # fmt: skip
    return {key: value for key, value in found.items() if value is not None}


def _masks():
    return batches(lambda i: {"image": torch.randn(3, 64, 64), "mask": torch.randint(3, (64, 64))})


PARTS = {"backbone": ("model.encoder",), "new": ("model.decoder", "model.head")}
CASES = [
    Case(
        "SemanticSegmentationTask(UNetDecoder)",
        lambda: worn(
            tasks.SemanticSegmentationTask(
                _arguments(num_classes=3), "EncoderDecoderFactory", plot_on_val=False,
                optimizer="AdamW", ignore_index=255,
            )
        ),
        _masks,
        **PARTS,
    ),
    Case(
        "SemanticSegmentationTask(FCNDecoder)",
        lambda: worn(
            tasks.SemanticSegmentationTask(
                _arguments(num_classes=3, decoder="FCNDecoder", decoder_channels=16),
                "EncoderDecoderFactory", plot_on_val=False, optimizer="AdamW",
                ignore_index=255,
            )
        ),
        _masks,
        **PARTS,
    ),
    Case(
        "PixelwiseRegressionTask",
        lambda: worn(
            tasks.PixelwiseRegressionTask(
                _arguments(), "EncoderDecoderFactory", plot_on_val=False, optimizer="AdamW"
            )
        ),
        lambda: batches(lambda i: {"image": torch.randn(3, 64, 64), "mask": torch.rand(64, 64)}),
        **PARTS,
    ),
    Case(
        "ClassificationTask",
        lambda: worn(
            tasks.ClassificationTask(
                _arguments(num_classes=3, decoder="IdentityDecoder", decoder_channels=None),
                "EncoderDecoderFactory", optimizer="AdamW",
            )
        ),
        lambda: batches(lambda i: {"image": torch.randn(3, 64, 64), "label": torch.tensor(i % 3)}),
        backbone=("model.encoder",),
        new=("model.head",),
    ),
]  # fmt: skip
