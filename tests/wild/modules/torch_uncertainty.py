"""Uncertainty: torch-uncertainty's routines wrap a network of the user."""

import timm
import torch
from torch import nn
from torch_uncertainty.models.mlp import mlp
from torch_uncertainty.routines import (
    ClassificationRoutine,
    RegressionRoutine,
    SegmentationRoutine,
)

from tests.wild.case import Case, batches, worn

DISTRIBUTION = "torch-uncertainty"


def _adam(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def _classifier():
    return worn(timm.create_model("resnet18", num_classes=3))


def _segmenter():
    import segmentation_models_pytorch as smp

    return smp.FPN("resnet18", encoder_weights=None, classes=3)


CASES = [
    Case(
        "ClassificationRoutine",
        lambda: ClassificationRoutine(_classifier(), 3, nn.CrossEntropyLoss(), optim_recipe=_adam),
        lambda: batches(lambda i: (torch.randn(3, 32, 32), i % 3)),
        new=("model.fc",),
        load=lambda: {
            "model": _classifier(),
            "num_classes": 3,
            "loss": nn.CrossEntropyLoss(),
            "optim_recipe": _adam,
        },
    ),
    Case(
        "RegressionRoutine",
        lambda: RegressionRoutine(
            mlp(in_features=6, num_outputs=2, hidden_dims=[24, 24]),
            2,
            nn.MSELoss(),
            optim_recipe=_adam,
        ),
        lambda: batches(lambda i: (torch.randn(6), torch.randn(2))),
        load=lambda: {
            "model": mlp(in_features=6, num_outputs=2, hidden_dims=[24, 24]),
            "output_dim": 2,
            "loss": nn.MSELoss(),
            "optim_recipe": _adam,
        },
    ),
    Case(
        "SegmentationRoutine",
        lambda: SegmentationRoutine(_segmenter(), 3, nn.CrossEntropyLoss(), optim_recipe=_adam),
        lambda: batches(lambda i: (torch.randn(3, 32, 32), torch.randint(3, (32, 32)))),
        backbone=("model.encoder",),
        new=("model.decoder", "model.segmentation_head"),
        load=lambda: {
            "model": _segmenter(),
            "num_classes": 3,
            "loss": nn.CrossEntropyLoss(),
            "optim_recipe": _adam,
        },
    ),
]
