"""Anomalies: anomalib, whose networks have a teacher or an extractor that is frozen."""

import timm
import torch
from anomalib import models
from anomalib.data import ImageBatch
from anomalib.pre_processing import PreProcessor
from torchvision.transforms.v2 import Resize

from tests.wild.case import Case, fixed, worn

DISTRIBUTION = "anomalib"
PARTS = dict.fromkeys(("post_processor", "evaluator", "visualizer"), False)


_CREATE = timm.create_model
timm.create_model = lambda *args, **settings: _CREATE(*args, **(settings | {"pretrained": False}))


def _build(kind, size, **settings):
    model = kind(pre_processor=_sized(size), **settings, **PARTS)
    model.setup("fit")
    return worn(model)


def _sized(size):
    """Some models ask it for the size of the images."""
    return PreProcessor(transform=Resize((size, size)))


def _images(size=64, count=2):
    generator = torch.Generator().manual_seed(1)
    found = [
        ImageBatch(
            image=torch.rand(2, 3, size, size, generator=generator),
            gt_label=torch.tensor([0, 0]),
            gt_mask=torch.zeros(2, size, size, dtype=torch.bool),
        )
        for _ in range(count)
    ]
    return fixed(found)


def _case(kind, adapted, new=(), size=64, words=None, **settings):
    return Case(
        kind.__name__,
        lambda: _build(kind, size, **settings),
        lambda: _images(size),
        backbone=adapted,
        new=new,
        words=words or {},
        load=lambda: {"pre_processor": _sized(size), **PARTS},
        epochs=2,
    )


CASES = [
    _case(models.Stfpm, ("model.student_model",), backbone="resnet18"),
    _case(models.ReverseDistillation, ("model.decoder", "model.bottleneck"), size=64,
          backbone="resnet18"),
    _case(models.Fastflow, ("model.feature_extractor",), ("model.fast_flow_blocks",),
          backbone="resnet18", flow_steps=2),
    _case(models.Supersimplenet, ("model.feature_extractor",), ("model.adaptor", "model.segdec"),
          size=128, backbone="resnet18", layers=["layer2", "layer3"]),
    _case(models.Ganomaly, ("",), n_features=16, latent_vec_size=16),
    _case(models.Fre, ("model.feature_extractor",), ("model.fre_model",), backbone="resnet18",
          layer="layer3", input_dim=1024, latent_dim=16),
]  # fmt: skip
