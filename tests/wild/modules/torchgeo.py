"""Remote sensing: torchgeo's trainers."""

import torch
from torchgeo import trainers

from tests.wild.case import Case, batches, worn

DISTRIBUTION = "torchgeo"


def _labels():
    return batches(lambda i: {"image": torch.randn(3, 32, 32), "label": torch.tensor(i % 3)})


def _numbers():
    return batches(lambda i: {"image": torch.randn(3, 32, 32), "label": torch.rand(())})


def _masks(classes=3):
    return batches(
        lambda i: {"image": torch.randn(3, 32, 32), "mask": torch.randint(classes, (32, 32))}
    )


def _heights():
    return batches(lambda i: {"image": torch.randn(3, 32, 32), "mask": torch.rand(32, 32)})


def _boxes(number):
    box = torch.tensor([[4.0, 4.0, 24.0, 24.0]])
    return {"image": torch.rand(3, 64, 64), "bbox_xyxy": box, "label": torch.tensor([1])}


def _list(samples):
    return {
        "image": torch.stack([s["image"] for s in samples]),
        "bbox_xyxy": [s["bbox_xyxy"] for s in samples],
        "label": [s["label"] for s in samples],
    } | ({"mask": [s["mask"] for s in samples]} if "mask" in samples[0] else {})


def _views():
    return batches(lambda i: {"image": torch.rand(3, 32, 32)})


def _instances(number):
    return _boxes(number) | {"mask": torch.ones(1, 64, 64, dtype=torch.uint8)}


def _pairs():
    return batches(
        lambda i: {"image": torch.randn(2, 3, 32, 32), "mask": torch.randint(2, (1, 32, 32))}
    )


def _small(task):
    """The transform of a detector enlarges what it is given."""
    task.model.transform.min_size, task.model.transform.max_size = (64,), 64
    return worn(task)


def _detector(kind, **settings):
    return lambda: _small(kind(backbone="resnet18", num_classes=3, **settings))


def _detected(sample=_boxes):
    return lambda: batches(sample, count=4, size=2, collate_fn=_list)


SEGMENTATION = {"backbone": ("model.encoder",), "new": ("model.decoder", "model.segmentation_head")}
VIEWS = "every epoch draws other views"


def _moco():
    """Pretrained, its two encoders are equal at the start."""
    module = worn(trainers.MoCoTask(model="resnet18", version=2, size=32, memory_bank_size=64))
    for name in ("backbone", "projection_head"):
        values = getattr(module, name).state_dict()
        getattr(module, f"{name}_momentum").load_state_dict(values)
    return module


CASES = [
    Case(
        "ClassificationTask(resnet18)",
        lambda: worn(trainers.ClassificationTask(model="resnet18", num_classes=3)),
        _labels,
        new=("model.fc",),
    ),
    Case(
        "ClassificationTask(vit)",
        lambda: trainers.ClassificationTask(model="test_vit", num_classes=3),
        lambda: batches(
            lambda i: {"image": torch.randn(3, 160, 160), "label": torch.tensor(i % 3)}
        ),
        new=("model.head",),
    ),
    Case(
        "RegressionTask",
        lambda: worn(trainers.RegressionTask(model="resnet18", num_outputs=1)),
        _numbers,
        new=("model.fc",),
    ),
    Case(
        "SemanticSegmentationTask(unet)",
        lambda: worn(trainers.SemanticSegmentationTask(backbone="resnet18", num_classes=3)),
        _masks,
        **SEGMENTATION,
    ),
    Case(
        "SemanticSegmentationTask(deeplabv3+)",
        lambda: worn(
            trainers.SemanticSegmentationTask(
                model="deeplabv3+", backbone="resnet18", num_classes=3
            )
        ),
        _masks,
        **SEGMENTATION,
    ),
    Case(
        "SemanticSegmentationTask(segformer)",
        lambda: trainers.SemanticSegmentationTask(
            model="segformer", backbone="mit_b0", num_classes=3
        ),
        lambda: _masks(),
        **SEGMENTATION,
    ),
    Case(
        "SemanticSegmentationTask(fcn)",
        lambda: trainers.SemanticSegmentationTask(model="fcn", num_classes=3, num_filters=8),
        _masks,
        new=("model.last",),
    ),
    Case(
        "PixelwiseRegressionTask",
        lambda: worn(trainers.PixelwiseRegressionTask(model="unet", backbone="resnet18")),
        _heights,
        **SEGMENTATION,
    ),
    Case(
        "ChangeDetectionTask(fcsiamdiff)",
        lambda: worn(trainers.ChangeDetectionTask(model="fcsiamdiff", backbone="resnet18")),
        _pairs,
        **SEGMENTATION,
    ),
    Case(
        "ObjectDetectionTask(faster-rcnn)",
        _detector(trainers.ObjectDetectionTask, model="faster-rcnn"),
        _detected(),
        backbone=("model.backbone",),
        new=("model.rpn", "model.roi_heads"),
        epochs=2,
    ),
    Case(
        "ObjectDetectionTask(retinanet)",
        _detector(trainers.ObjectDetectionTask, model="retinanet"),
        _detected(),
        backbone=("model.backbone",),
        new=("model.head",),
        epochs=2,
    ),
    Case(
        "InstanceSegmentationTask(mask-rcnn)",
        lambda: _small(
            trainers.InstanceSegmentationTask(model="mask-rcnn", backbone="resnet50", num_classes=3)
        ),
        _detected(_instances),
        backbone=("model.backbone",),
        new=("model.rpn", "model.roi_heads"),
        epochs=2,
    ),
    Case(
        "BYOLTask",
        lambda: worn(trainers.BYOLTask(model="resnet18")),
        _views,
        backbone=("model.backbone", "backbone"),
        new=("model.predictor",),
        falls=VIEWS,
        epochs=2,
    ),
    Case(
        "SimCLRTask",
        lambda: worn(trainers.SimCLRTask(model="resnet18", version=1, size=32)),
        _views,
        backbone=("backbone",),
        new=("projection_head",),
        falls=VIEWS,
        epochs=2,
    ),
    Case(
        "MoCoTask",
        _moco,
        _views,
        backbone=("backbone",),
        new=("projection_head",),
        falls=VIEWS,
        epochs=2,
    ),
]
