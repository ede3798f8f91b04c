"""The base class of the ready classifiers, for all tasks with classes and any input."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from lightning_peft.errors import DataError
from lightning_peft.evaluation.calibration import fit_temperature
from lightning_peft.evaluation.metric_classes import Gathered
from lightning_peft.evaluation.metric_names import Task
from lightning_peft.evaluation.metrics import metric_set
from lightning_peft.evaluation.outputs import Outputs, check_task
from lightning_peft.evaluation.results import Evaluation, classified
from lightning_peft.lightning.modules.base import ReadyModule
from lightning_peft.lightning.modules.build import check_arguments
from lightning_peft.lightning.modules.tasks import check_labels, imbalance, task_loss
from lightning_peft.lightning.namespace import pl

__all__ = ["ClassifierModule"]

CLASSES: tuple[Task, ...] = ("multiclass", "binary", "multilabel")

log = logging.getLogger(__name__)


class ClassifierModule(ReadyModule):
    """Losses, metrics, tables, temperature and predictions of a classifier.

    A subclass calls :meth:`_classify` with its arguments, builds ``backbone`` with a head of
    ``head_size(task, num_classes)``, and defines ``forward``.
    """

    temperature: float
    label_smoothing: float

    def _classify(
        self,
        *,
        task: Task,
        num_classes: int,
        class_names: Sequence[str] | None,
        label_smoothing: float,
        temperature: float,
        lr: float,
        weight_decay: float,
        groups: dict[str, Any],
        optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None,
        parts: dict[str, float],
        amounts: dict[str, float],
    ) -> None:
        """Check and keep the arguments that all classifiers have.

        Args:
            task: The task.
            num_classes: Number of classes.
            class_names: Name of each class.
            label_smoothing: Fraction of the target that is spread over all classes.
            temperature: The divisor of logits.
            lr: Learning rate.
            weight_decay: Weight decay.
            groups: More arguments of :func:`parameter_groups`.
            optimizer: Called with the parameter groups.
            parts: More arguments that have to be in [0, 1), for the check.
            amounts: More arguments that have to be 0 or more, for the check.

        Raises:
            DataError: Listing all values that are out of range.
        """
        check_task(task, CLASSES)
        check_arguments(
            task=task,
            num_classes=num_classes,
            class_names=class_names,
            parts={**parts, "label_smoothing": label_smoothing},
            amounts=amounts,
            positive={"temperature": temperature},
        )
        self.task: Task = task
        self.temperature = temperature
        self.num_classes = num_classes
        self.class_names = None if class_names is None else list(class_names)
        self.label_smoothing = label_smoothing
        self.lr = lr
        self.weight_decay = weight_decay
        self.group_settings = groups
        self.optimizer = optimizer
        self._measure_with(*(self._metrics(ranking) for ranking in (False, True)))
        self._kept: Gathered | None = None  # the outputs that calibration uses

    def _metrics(self, ranking: bool) -> MetricCollection:
        """Return the metrics of the task; ranking metrics are for the test."""
        sizes = {"num_classes": self.num_classes, "num_labels": self.num_classes}
        return metric_set(self.task, **sizes, ranking=ranking)

    @property
    def outputs(self) -> Outputs:
        """The conversion of logits to probabilities."""
        return Outputs(self.task, self.temperature)

    def setup(self, stage: str) -> None:
        """Compare the classes of the data module, if it has them, with the head's."""
        super().setup(stage)
        counts = getattr(getattr(self.trainer, "datamodule", None), "class_counts", None)
        if stage != "fit" or counts is None or not self.trainer.is_global_zero:
            return
        for split in ("train", "val"):
            if told := imbalance(counts(split), split, self.class_names, self.noun):
                log.warning("%s", told)

    def training_step(self, batch: tuple[Any, Tensor], batch_idx: int) -> Tensor:
        """Return the cross entropy of a batch, with mixing and smoothing."""
        inputs, labels = batch
        self._check_targets(labels, batch_idx)
        inputs, labels = self._for_training(inputs, labels, batch_idx)
        logits = self(inputs).float()
        loss = task_loss(self.task, logits, labels, self.label_smoothing)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(labels))
        return loss

    def _for_training(self, inputs: Any, labels: Tensor, batch_idx: int) -> tuple[Any, Tensor]:
        """Return a training batch after changes to the whole batch."""
        return inputs, labels

    def validated(
        self, trainer: pl.Trainer, data: Any, ckpt_path: str | None = None
    ) -> tuple[Tensor, Tensor]:
        """Validate, and return the logits ``(N, C)`` and targets of all validation data.

        Args:
            trainer: Runs the validation.
            data: A data module or a loader; its validation split is used, never its test split.
            ckpt_path: Weights to load first.

        Raises:
            DataError: If there is no validation data.
        """
        kept = self._kept = Gathered()
        try:
            trainer.validate(self, data, ckpt_path=ckpt_path, verbose=False)
        finally:
            self._kept = None
        if not kept.outputs:
            raise DataError(
                f"Expected validation {self.noun} to fit a temperature on, got none: keep "
                f"{self.noun} for validation, or leave calibration out."
            )
        return kept.compute()

    def calibrate(self, trainer: pl.Trainer, data: Any, ckpt_path: str | None = None) -> float:
        """Fit the temperature on validation data, and keep it among the hyperparameters.

        Args:
            trainer: Runs the validation.
            data: A data module or a loader; its validation split is used, never its test split.
            ckpt_path: Weights to load first.

        Returns:
            The temperature.

        Raises:
            DataError: If there is no validation data.
        """
        outputs, targets = self.validated(trainer, data, ckpt_path)
        self.temperature = fit_temperature(outputs, targets, self.task)
        self.hparams["temperature"] = self.temperature
        return self.temperature

    def validation_step(self, batch: tuple[Any, Tensor], batch_idx: int) -> None:
        """Add a batch to the validation metrics."""
        found = self._evaluate(batch, batch_idx, "val", self.val_metrics)
        if self._kept is not None:
            self._kept.update(*found)

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Return probabilities in float32 and predictions.

        Returns:
            ``probabilities`` ``(B, num_classes)`` (for a binary task of both classes), and
            ``predictions``: classes ``(B,)``, or for ``"multilabel"`` 0 and 1 ``(B, num_classes)``.
        """
        inputs = batch[0] if isinstance(batch, list | tuple) else batch
        probabilities = self.outputs(self(inputs))
        if self.task == "multilabel":
            return {"probabilities": probabilities, "predictions": (probabilities > 0.5).long()}
        return {"probabilities": probabilities, "predictions": probabilities.argmax(-1)}

    def _check_targets(self, targets: Tensor, batch_idx: int) -> None:
        # reading labels on a GPU waits for it: once a pass is enough to find a wrong head
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
            found.metrics["test/ece_uncalibrated"] = found.calibration_error(calibrated=False)
        return found
