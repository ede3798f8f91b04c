"""Segmentation: an encoder of timm beside a decoder."""

import segmentation_models_pytorch as smp
import torch
from torch.nn import functional as F

from tests.wild.case import Case, batches, worn
from tests.wild.plain import Plain

DISTRIBUTION = "segmentation-models-pytorch"
PARTS = {"backbone": ("model.encoder",), "new": ("model.decoder", "model.segmentation_head")}


def _masks():
    return batches(lambda i: (torch.randn(3, 64, 64), torch.randint(3, (64, 64))))


def _build(kind, encoder):
    model = smp.create_model(kind, encoder, encoder_weights=None, classes=3)
    return worn(model)


def _own(module, folder):
    module.model.save_pretrained(folder)
    return Plain(smp.from_pretrained(folder), F.cross_entropy)


CASES = [
    Case(
        f"{kind}({encoder})",
        lambda kind=kind, encoder=encoder: Plain(_build(kind, encoder), F.cross_entropy),
        _masks,
        **PARTS,
        load=lambda kind=kind, encoder=encoder: {
            "model": _build(kind, encoder), "loss": F.cross_entropy
        },
        own=_own,
        epochs=2,
    )
    for kind, encoder in (
        ("UnetPlusPlus", "resnet18"), ("MAnet", "timm-mobilenetv3_small_100"),
        ("Linknet", "resnet18"), ("Segformer", "mit_b0"), ("FPN", "resnet18"),
    )
]  # fmt: skip
