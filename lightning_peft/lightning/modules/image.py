"""A ready classifier of images on any timm backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_peft.evaluation.metric_names import Task
from lightning_peft.evaluation.outputs import head_size
from lightning_peft.lightning.modules.base import ImageModule, group_settings
from lightning_peft.lightning.modules.build import build_backbone, mixing, plain
from lightning_peft.lightning.modules.classifier import ClassifierModule
from lightning_peft.system.randomness import seeded

__all__ = ["ImageClassifier"]


class ImageClassifier(ClassifierModule, ImageModule):
    """Classifies images with a timm backbone and a new head.

    It is independent of adapters: without ``lp.PEFT`` it fine-tunes all parameters.

    | Logged | When | What |
    | --- | --- | --- |
    | `train/loss` | each step | cross entropy, with smoothing and mixing |
    | `val/loss`, `test/loss` | each epoch | cross entropy, without |
    | `val/accuracy`, `test/accuracy` | each epoch | fraction of the images, in [0, 1] |
    | `val/...`, `test/...` | each epoch | the metrics of :func:`~lightning_peft.evaluation.metrics.metric_set` for the task; a multiclass AUROC in the test only |
    | `test/ece_uncalibrated` | test | the calibration error before the division by the temperature |

    After a test, :meth:`test_results` also has the table of classes, the confusion matrix, the bins
    of a reliability diagram and bootstrap intervals. If the largest class has three times the
    training or validation images of the smallest, a message says so once, provided that the data
    module has the counts.

    Args:
        backbone: A timm name, or a module that maps images to logits of ``num_classes``, which
            keeps its head. A module is not among the hyperparameters of a checkpoint:
            ``load_from_checkpoint(path, backbone=module)``.
        num_classes: Number of classes.
        pretrained: Start from the backbone's pretrained weights.
        backbone_kwargs: More arguments of ``timm.create_model``, such as ``img_size`` or
            ``in_chans``.
        head_dropout: Probability of dropping a feature before the head, during training.
        drop_path: Probability of skipping a residual branch (stochastic depth), at the last block.
        label_smoothing: Fraction of the target that is spread over all classes, in [0, 1).
        mixup: Alpha of mixup's Beta distribution; 0 is off. With ``cutmix`` too, one of both
            changes each batch.
        cutmix: Alpha of CutMix; 0 is off.
        lr: Learning rate.
        weight_decay: Weight decay of the parameters that decay (see :func:`parameter_groups`).
        head_lr: A separate learning rate for the head.
        head_weight_decay: A separate weight decay for the head.
        adapter_weight_decay: A separate weight decay for adapters.
        lora_plus: How many times as fast as A the factor B of low-rank updates learns (LoRA+).
        layer_decay: Factor of the learning rate from each block to the one before it; None is 1.
        optimizer: Called with the parameter groups, such as ``functools.partial(torch.optim.SGD,
            momentum=0.9)``; AdamW by default. It is not among the hyperparameters of a checkpoint.
        class_names: Name of each class, for the tables; by default those of the data module.
        task: ``"multiclass"`` (one class of several), ``"binary"`` (two classes, one logit, for
            class 1) or ``"multilabel"`` (any number of labels; targets are ``(B,
            num_classes)`` of 0 and 1). The last two use the binary cross entropy of each logit.
        temperature: The divisor of logits before they become probabilities; see :meth:`calibrate`.

    Raises:
        DataError: If timm has no such backbone, a value is out of its range, or the number of
            class names differs from the classes; at :meth:`setup` or the first batch, if the data
            has other classes than the head, or if a callback monitors a metric of the test set.

    >>> import torch
    >>> import lightning_peft as lp
    >>> module = lp.ImageClassifier("test_vit", num_classes=3, pretrained=False)
    >>> module(torch.zeros(2, 3, 160, 160)).shape
    torch.Size([2, 3])
    """  # noqa: E501

    def __init__(
        self,
        backbone: str | nn.Module = "glyph_vit",
        num_classes: int = 10,
        *,
        pretrained: bool = True,
        backbone_kwargs: Mapping[str, Any] | None = None,
        head_dropout: float = 0.0,
        drop_path: float = 0.0,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        head_lr: float | None = None,
        head_weight_decay: float | None = None,
        adapter_weight_decay: float | None = None,
        lora_plus: float | None = None,
        layer_decay: float | None = None,
        optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None = None,
        class_names: Sequence[str] | None = None,
        task: Task = "multiclass",
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        # Hydra passes its own container types, which must not end up in a checkpoint
        backbone_kwargs = plain(backbone_kwargs or {})
        class_names = None if class_names is None else [str(name) for name in class_names]
        ignored = ["optimizer"] if isinstance(backbone, str) else ["backbone", "optimizer"]
        self.save_hyperparameters(ignore=ignored)
        self._classify(
            task=task,
            num_classes=num_classes,
            class_names=class_names,
            label_smoothing=label_smoothing,
            temperature=temperature,
            lr=lr,
            weight_decay=weight_decay,
            groups=group_settings(locals()),
            optimizer=optimizer,
            parts={"head_dropout": head_dropout, "drop_path": drop_path},
            amounts={"mixup": mixup, "cutmix": cutmix},
        )
        self.backbone = build_backbone(
            backbone,
            head_size(task, num_classes),
            pretrained,
            backbone_kwargs,
            {"drop_rate": head_dropout, "drop_path_rate": drop_path},
        )
        self._mix = mixing(mixup, cutmix, num_classes)

    def _for_training(
        self, inputs: Tensor, labels: Tensor, batch_idx: int
    ) -> tuple[Tensor, Tensor]:
        if self._mix is None:
            return inputs, labels
        # seeded by the place in the run, so that a resumed run mixes like one that never stopped
        with seeded("mix", self.current_epoch, batch_idx, self.global_rank):
            images, labels = self._mix(inputs, labels)
        return images, labels
