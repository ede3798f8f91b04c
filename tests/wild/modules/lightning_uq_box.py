"""Uncertainty: lightning-uq-box wraps a network of the user."""

from functools import partial

import timm
import torch
from lightning_uq_box import uq_methods as uq
from torch import nn

from tests.wild.case import Case, batches, worn

DISTRIBUTION = "lightning-uq-box"


def _tabular(outputs):
    layers = [nn.Linear(6, 24), nn.ReLU(), nn.Dropout(0.1)]
    layers += [nn.Linear(24, 24), nn.ReLU(), nn.Dropout(0.1), nn.Linear(24, outputs)]
    return nn.Sequential(*layers)


ADAM = partial(torch.optim.Adam, lr=3e-3)


def _rows():
    return batches(lambda i: {"input": torch.randn(6), "target": torch.randn(1)})


def _images():
    return batches(lambda i: {"input": torch.randn(3, 32, 32), "target": torch.tensor(i % 3)})


def _network(classes=3):
    return worn(timm.create_model("resnet18", num_classes=classes))


CASES = [
    Case(
        "DeterministicRegression",
        lambda: uq.DeterministicRegression(_tabular(1), nn.MSELoss(), optimizer=ADAM),
        _rows,
        new=("model.6",),
        epochs=8,
        load=lambda: {"model": _tabular(1), "loss_fn": nn.MSELoss()},
    ),
    Case(
        "DeterministicClassification",
        lambda: uq.DeterministicClassification(_network(), nn.CrossEntropyLoss()),
        _images,
        new=("model.fc",),
        load=lambda: {"model": _network(), "loss_fn": nn.CrossEntropyLoss()},
    ),
    Case(
        "MCDropoutRegression",
        lambda: uq.MCDropoutRegression(_tabular(1), 5, nn.MSELoss(), optimizer=ADAM),
        _rows,
        new=("model.6",),
        epochs=8,
        load=lambda: {"model": _tabular(1), "num_mc_samples": 5, "loss_fn": nn.MSELoss()},
    ),
    Case(
        "MVERegression",
        lambda: uq.MVERegression(_tabular(2), burnin_epochs=1, optimizer=ADAM),
        _rows,
        new=("model.6",),
        epochs=8,
        load=lambda: {"model": _tabular(2), "burnin_epochs": 1},
    ),
    Case(
        "QuantileRegression",
        lambda: uq.QuantileRegression(_tabular(3), optimizer=ADAM),
        _rows,
        new=("model.6",),
        epochs=8,
        load=lambda: {"model": _tabular(3)},
    ),
]
