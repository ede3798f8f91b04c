"""A ready classifier of images on any timm backbone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from lightning_peft._namespace import pl
from lightning_peft._seeds import seeded
from lightning_peft.calibration import expected_error, fit_temperature
from lightning_peft.errors import DataError
from lightning_peft.metric_names import Task
from lightning_peft.modules.base import ImageModule
from lightning_peft.modules.build import build_backbone, check_arguments, mixing, plain
from lightning_peft.modules.evaluation import Evaluation, classified
from lightning_peft.modules.metrics import Gathered, metric_set
from lightning_peft.modules.tasks import check_labels, imbalance, task_loss
from lightning_peft.outputs import Outputs, check_task, head_size

__all__ = ["ImageClassifier"]

CLASSES: tuple[Task, ...] = ("multiclass", "binary", "multilabel")

log = logging.getLogger(__name__)


class ImageClassifier(ImageModule):
    """Classifies images with a timm backbone and a new head.

    It knows nothing of adapters: without ``lp.PEFT`` it is an ordinary full fine-tune.

    | Logged | When | What |
    | --- | --- | --- |
    | `train/loss` | each step | cross entropy, with smoothing and mixing |
    | `val/loss`, `test/loss` | each epoch | cross entropy, without |
    | `val/accuracy`, `test/accuracy` | each epoch | part of the images, in [0, 1] |
    | `val/...`, `test/...` | each epoch | what :func:`~lightning_peft.modules.metrics.metric_set` has for the task; a multiclass AUROC at the test alone |
    | `test/ece_uncalibrated` | test | the calibration error before the division by the temperature |

    After a test, :meth:`test_results` has the table of classes, the confusion matrix, the bins of a
    reliability diagram and bootstrap intervals too. Classes of which the largest has three times
    the training or validation images of the smallest are told once, where the data module says
    how many there are.

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
        label_smoothing: Part of the target that is spread over all classes, in [0, 1).
        mixup: Alpha of mixup's Beta distribution; 0 is off. With ``cutmix`` too, each batch is
            changed by one of both.
        cutmix: Alpha of CutMix; 0 is off.
        lr: Learning rate.
        weight_decay: Weight decay of what should decay (see :func:`parameter_groups`).
        head_lr: A learning rate of its own for the head.
        head_weight_decay: A weight decay of its own for the head.
        adapter_weight_decay: A weight decay of its own for adapters.
        lora_plus: How many times as fast as A the factor B of low-rank updates learns (LoRA+).
        layer_decay: Factor of the learning rate from each block to the one before it; None is 1.
        optimizer: Called with the parameter groups, such as ``functools.partial(torch.optim.SGD,
            momentum=0.9)``; AdamW by default. It is not among the hyperparameters of a checkpoint.
        class_names: Name of each class, for the tables; by default those of the data module.
        task: ``"multiclass"`` (one class of several), ``"binary"`` (two classes, one logit, which
            is of class 1) or ``"multilabel"`` (any number of labels; targets are ``(B,
            num_classes)`` of 0 and 1). The last two have the binary cross entropy of each logit.
        temperature: What logits are divided by before they become probabilities; see
            :meth:`calibrate`.

    Raises:
        DataError: If timm has no such backbone, a value is out of its range, or the class names are
            not as many as the classes; at :meth:`setup` or the first batch, if the data has other
            classes than the head, or if a callback watches a metric of the test set.
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
        # Hydra hands over containers of its own, which must not end up in a checkpoint
        backbone_kwargs = plain(backbone_kwargs or {})
        class_names = None if class_names is None else [str(name) for name in class_names]
        check_task(task, CLASSES)
        check_arguments(
            task=task,
            num_classes=num_classes,
            class_names=class_names,
            parts={
                "head_dropout": head_dropout,
                "drop_path": drop_path,
                "label_smoothing": label_smoothing,
            },
            amounts={"mixup": mixup, "cutmix": cutmix},
            positive={"temperature": temperature},
        )
        ignored = ["optimizer"] if isinstance(backbone, str) else ["backbone", "optimizer"]
        self.save_hyperparameters(ignore=ignored)
        self.task: Task = task
        self.temperature = temperature
        self.num_classes = num_classes
        self.class_names = class_names
        self.label_smoothing = label_smoothing
        self.lr = lr
        self.weight_decay = weight_decay
        self.group_settings: dict[str, Any] = {
            "head_lr": head_lr,
            "head_weight_decay": head_weight_decay,
            "adapter_weight_decay": adapter_weight_decay,
            "lora_plus": lora_plus,
            "layer_decay": layer_decay,
        }
        self.optimizer = optimizer
        self.backbone = build_backbone(
            backbone,
            head_size(task, num_classes),
            pretrained,
            backbone_kwargs,
            {"drop_rate": head_dropout, "drop_path_rate": drop_path},
        )
        self._mix = mixing(mixup, cutmix, num_classes)
        self._measure_with(*(self._metrics(ranking) for ranking in (False, True)))
        self._kept: Gathered | None = None  # what calibration looks at

    def _metrics(self, ranking: bool) -> MetricCollection:
        """The metrics of the task; the ranking of all images by each class is for the test."""
        sizes = {"num_classes": self.num_classes, "num_labels": self.num_classes}
        return metric_set(self.task, **sizes, ranking=ranking)

    @property
    def outputs(self) -> Outputs:
        """How logits become probabilities."""
        return Outputs(self.task, self.temperature)

    def setup(self, stage: str) -> None:
        """Compare the classes of the data module, if it says which it has, with the head's."""
        super().setup(stage)
        counts = getattr(getattr(self.trainer, "datamodule", None), "class_counts", None)
        if stage != "fit" or counts is None or not self.trainer.is_global_zero:
            return
        for split in ("train", "val"):
            if told := imbalance(counts(split), split, self.class_names):
                log.warning("%s", told)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross entropy of a batch, mixed and smoothed as asked."""
        images, labels = batch
        self._check_targets(labels, batch_idx)
        if self._mix is not None:
            # by the place in the run, so that a resumed run mixes as the one that never stopped
            with seeded("mix", self.current_epoch, batch_idx, self.global_rank):
                images, labels = self._mix(images, labels)
        logits = self(images).float()
        loss = task_loss(self.task, logits, labels, self.label_smoothing)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(images))
        return loss

    def calibrate(self, trainer: pl.Trainer, data: Any, ckpt_path: str | None = None) -> float:
        """Fit the temperature on validation images, and keep it among the hyperparameters.

        Args:
            trainer: Runs the validation.
            data: A data module or a loader; its validation images are used, never its test images.
            ckpt_path: Weights to load before.

        Returns:
            The temperature.

        Raises:
            DataError: If there is no validation image.
        """
        kept = self._kept = Gathered()
        try:
            trainer.validate(self, data, ckpt_path=ckpt_path, verbose=False)
        finally:
            self._kept = None
        if not kept.outputs:
            raise DataError(
                "Expected validation images to fit a temperature on, got none: keep images for "
                "validation, or leave calibration out."
            )
        self.temperature = fit_temperature(*kept.compute(), self.task)
        self.hparams["temperature"] = self.temperature
        return self.temperature

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add a batch to the validation metrics."""
        found = self._evaluate(batch, batch_idx, "val", self.val_metrics)
        if self._kept is not None:
            self._kept.update(*found)

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Probabilities in float32 and what is predicted.

        Returns:
            ``probabilities`` ``(B, num_classes)`` (of a binary task of both classes), and
            ``predictions``: classes ``(B,)``, or of ``"multilabel"`` 0 and 1 ``(B, num_classes)``.
        """
        images = batch[0] if isinstance(batch, list | tuple) else batch
        probabilities = self.outputs(self(images))
        if self.task == "multilabel":
            return {"probabilities": probabilities, "predictions": (probabilities > 0.5).long()}
        return {"probabilities": probabilities, "predictions": probabilities.argmax(-1)}

    def _check_targets(self, targets: Tensor, batch_idx: int) -> None:
        # looking at labels on a GPU waits for it: once a pass is enough to find a wrong head
        if targets.device.type == "cpu" or batch_idx == 0:
            check_labels(self.task, targets, self.num_classes)

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return task_loss(self.task, outputs, targets)

    def _scored(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        probabilities = self.outputs(outputs)
        if self.task == "binary":
            return probabilities[:, 1], targets
        return probabilities, targets.long()

    def _recorded(self, outputs: Tensor) -> Tensor:
        if self.task != "multiclass":
            return outputs
        confidence, called = self.outputs(outputs).max(-1)
        before = outputs.softmax(-1).amax(-1)
        return torch.stack([called.float(), confidence, before], -1)

    def _tables(self, scores: dict[str, float], outputs: Tensor, targets: Tensor) -> Evaluation:
        found = classified(
            self.outputs, scores, outputs, targets, self.num_classes, self.class_names
        )
        if self.temperature != 1 and "test/ece" in scores:
            bins = found.reliability(calibrated=False)
            found.metrics["test/ece_uncalibrated"] = expected_error(bins)
        return found
