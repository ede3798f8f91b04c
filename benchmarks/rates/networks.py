"""The pretrained networks and their data: what a rate is tried on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import numpy as np

import lightning_peft as lp
from benchmarks.evidence.tasks import Task, draw, load
from benchmarks.evidence.train import EPOCHS, data_of
from benchmarks.habits import candidates

__all__ = ["LABELS", "NETWORKS", "STEPS", "Network"]

STEPS = 60
LABELS = 25
"""Labelled items a class."""

HELD = 300
"""Other items of the pool that a rate is judged on; the test items are never read."""


@dataclasses.dataclass(frozen=True)
class Network:
    """A pretrained network with its data.

    Attributes:
        task: ``"digits"``, ``"cells"`` or ``"reviews"``.
        model: A candidate of :mod:`benchmarks.habits.candidates`, or of the package.
        told: In words.
    """

    task: str
    model: str
    told: str

    def data(
        self, tasks: Mapping[str, Task], seed: int, steps: int = STEPS
    ) -> pl.LightningDataModule:
        """Return the labelled items of a seed for training, and others for validation."""
        if self.task == "digits":
            data: Any = lp.DigitsDataModule(
                LABELS, 30, seed=seed, augment="light", steps_per_epoch=max(1, steps // EPOCHS)
            )
        else:
            task = tasks.get(self.task) or load(self.task)
            drawn = draw(task, LABELS, seed)
            others = sorted(set(task.pool) - set(drawn))
            held = np.random.default_rng([seed, 1]).permutation(others)[:HELD].tolist()
            changes = candidates.data_changes(self.task, self.model)
            data = data_of(task, drawn, held, "val", seed=seed, steps=steps, **changes)
        data.prepare_data()
        data.setup("fit")
        return data

    def module(
        self, tasks: Mapping[str, Task], rate: float, pretrained: bool = True
    ) -> pl.LightningModule:
        """Return a classifier with a new head, whose values follow the global random state."""
        if self.task == "digits":
            return lp.ImageClassifier(self.model, 10, lr=rate, pretrained=pretrained)
        task = tasks.get(self.task) or load(self.task)
        kind: Any = lp.ImageClassifier if self.task == "cells" else lp.TextClassifier
        model = self.model if pretrained else f"{self.model}:random"
        return kind(candidates.build(task, model), len(task.classes), lr=rate)


NETWORKS = {
    "glyph_vit": Network("digits", "glyph_vit", "the ViT of this package on digits"),
    "glyph_vit_cells": Network("cells", "glyph_vit", "the same on solar cells"),
    "lite0": Network("cells", "tf_efficientnet_lite0", "EfficientNet-Lite0 on solar cells"),
    "lite0_cut": Network("cells", "tf_efficientnet_lite0@3", "its first four of five stages"),
    "lite1": Network("cells", "tf_efficientnet_lite1", "EfficientNet-Lite1 on solar cells"),
    "lite2": Network("cells", "tf_efficientnet_lite2", "EfficientNet-Lite2 on solar cells"),
    "minilm": Network("reviews", "minilm@6", "MiniLM-L6 on drug reviews"),
    "minilm_cut": Network("reviews", "minilm@2", "its first two layers of six"),
}
