"""A ready classifier of images on any timm backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)

from lightning_peft._namespace import pl
from lightning_peft._seeds import seeded
from lightning_peft.data_config import DataConfig, data_config
from lightning_peft.errors import DataError
from lightning_peft.modules.build import build_backbone, check_arguments, mixing, plain
from lightning_peft.modules.evaluation import Evaluation, per_class_table
from lightning_peft.param_groups import parameter_groups

__all__ = ["ImageClassifier"]


class ImageClassifier(pl.LightningModule):
    """Classifies images with a timm backbone and a new head.

    It knows nothing of adapters: without ``lp.PEFT`` it is an ordinary full fine-tune.

    | Logged | When | What |
    | --- | --- | --- |
    | `train/loss` | each step | cross entropy, with smoothing and mixing |
    | `val/loss`, `test/loss` | each epoch | cross entropy, without |
    | `val/accuracy`, `test/accuracy` | each epoch | part of the images, in [0, 1] |
    | `val/f1`, `test/f1` | each epoch | F1, every class weighted alike, in [0, 1] |
    | `val/ece`, `test/ece` | each epoch | expected calibration error, 15 bins, in [0, 1] |

    After a test, :meth:`test_results` has the table of classes and the confusion matrix too.

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

    Raises:
        DataError: If timm has no such backbone, a value is out of its range, or the class names are
            not as many as the classes; at :meth:`setup` or the first batch, if the data has other
            classes than the head.
    """

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
    ) -> None:
        super().__init__()
        # Hydra hands over containers of its own, which must not end up in a checkpoint
        backbone_kwargs = plain(backbone_kwargs or {})
        class_names = None if class_names is None else [str(name) for name in class_names]
        check_arguments(
            num_classes=num_classes,
            class_names=class_names,
            parts={
                "head_dropout": head_dropout,
                "drop_path": drop_path,
                "label_smoothing": label_smoothing,
            },
            amounts={"mixup": mixup, "cutmix": cutmix},
        )
        ignored = ["optimizer"] if isinstance(backbone, str) else ["backbone", "optimizer"]
        self.save_hyperparameters(ignore=ignored)
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
            num_classes,
            pretrained,
            backbone_kwargs,
            {"drop_rate": head_dropout, "drop_path_rate": drop_path},
        )
        self._mix = mixing(mixup, cutmix, num_classes)
        scores = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(num_classes, average="micro"),
                "f1": MulticlassF1Score(num_classes, average="macro"),
                "ece": MulticlassCalibrationError(num_classes, n_bins=15),
            }
        )
        self.val_metrics = scores.clone(prefix="val/")
        self.test_metrics = scores.clone(prefix="test/")
        self.test_confusion = MulticlassConfusionMatrix(num_classes)
        self._results: Evaluation | None = None

    @property
    def data_config(self) -> DataConfig:
        """Size, channels and normalisation of the images that the backbone expects."""
        return data_config(self.backbone)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, num_classes)`` of images ``(B, C, H, W)``."""
        logits: Tensor = self.backbone(images)
        return logits

    def setup(self, stage: str) -> None:
        """Compare the classes of the data module, if it says which it has, with the head's."""
        data = getattr(self.trainer, "datamodule", None)
        found = getattr(data, "num_classes", None)
        if found is not None and found != self.num_classes:
            raise DataError(
                f"Expected data of {self.num_classes} classes, as the head has, got {found} from "
                f"{type(data).__name__}. Build the module with num_classes={found}."
            )
        names = getattr(data, "class_names", None)
        if self.class_names is None and names is not None:
            self.class_names = [str(name) for name in names]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross entropy of a batch, mixed and smoothed as asked."""
        images, labels = batch
        self._check_labels(labels, batch_idx)
        if self._mix is not None:
            # by the place in the run, so that a resumed run mixes as the one that never stopped
            with seeded("mix", self.current_epoch, batch_idx, self.global_rank):
                images, labels = self._mix(images, labels)
        logits = self(images).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(images))
        return loss

    def on_validation_epoch_start(self) -> None:
        """Forget what an interrupted validation has left."""
        self.val_metrics.reset()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add a batch to the validation metrics."""
        self._evaluate(batch, batch_idx, "val", self.val_metrics)

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics over all batches and ranks."""
        self.log_dict(self.val_metrics.compute(), prog_bar=True, sync_dist=True)
        self.val_metrics.reset()

    def on_test_epoch_start(self) -> None:
        """Forget what another test has left."""
        self.test_metrics.reset()
        self.test_confusion.reset()
        self._results = None

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add a batch to the test metrics."""
        self.test_confusion.update(*self._evaluate(batch, batch_idx, "test", self.test_metrics))

    def on_test_epoch_end(self) -> None:
        """Log the test metrics over all batches and ranks, and keep the tables."""
        scores = self.test_metrics.compute()
        self.log_dict(scores, sync_dist=True)
        confusion = self.test_confusion.compute().cpu()
        metrics = {name: float(value) for name, value in scores.items()}
        self._results = Evaluation(metrics, per_class_table(confusion, self.class_names), confusion)

    def test_results(self) -> Evaluation:
        """The last test's metrics, table of classes and confusion matrix.

        Raises:
            DataError: If the module has not been tested.
        """
        if self._results is None:
            raise DataError("Expected a tested module, got none: call trainer.test(module) first.")
        return self._results

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Probabilities ``(B, num_classes)`` in float32 and predicted classes ``(B,)``."""
        images = batch[0] if isinstance(batch, list | tuple) else batch
        probabilities = self(images).float().softmax(-1)
        return {"probabilities": probabilities, "predictions": probabilities.argmax(-1)}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer over what is trained, weight decay where it belongs."""
        groups = parameter_groups(self, self.lr, self.weight_decay, **self.group_settings)
        return torch.optim.AdamW(groups) if self.optimizer is None else self.optimizer(groups)

    def _evaluate(
        self, batch: tuple[Tensor, Tensor], batch_idx: int, stage: str, metrics: MetricCollection
    ) -> tuple[Tensor, Tensor]:
        images, labels = batch
        self._check_labels(labels, batch_idx)
        logits = self(images).float()
        loss = F.cross_entropy(logits, labels)
        self.log(f"{stage}/loss", loss, prog_bar=True, batch_size=len(images), sync_dist=True)
        probabilities = logits.softmax(-1)
        metrics.update(probabilities, labels)
        return probabilities, labels

    def _check_labels(self, labels: Tensor, batch_idx: int) -> None:
        # looking at labels on a GPU waits for it: once a pass is enough to find a wrong head
        if labels.device.type != "cpu" and batch_idx > 0:
            return
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.num_classes:
            raise DataError(
                f"Expected labels from 0 to {self.num_classes - 1}, as the head has "
                f"{self.num_classes} classes, got labels from {low} to {high}. Build the module "
                f"with num_classes={high + 1}, or correct the labels."
            )
