"""The base classes of the ready modules: hooks, metrics, test results, the optimizer.

A subclass builds the backbone and defines the targets, the loss and the inputs of the metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from lightning_peft.adaptation.parameter_groups import parameter_groups
from lightning_peft.backbones.data_config import DataConfig, data_config
from lightning_peft.errors import DataError
from lightning_peft.evaluation.metric_classes import Gathered
from lightning_peft.evaluation.metric_names import MAIN, is_test
from lightning_peft.evaluation.metrics import begin_anew, values_of
from lightning_peft.evaluation.outputs import Outputs
from lightning_peft.evaluation.results import Evaluation
from lightning_peft.lightning.modules.text_checks import refuse_unreadable
from lightning_peft.lightning.namespace import pl

__all__ = ["ImageModule", "ReadyModule", "group_settings", "monitors_of_test"]

_GROUP_SETTINGS = frozenset(
    {"head_lr", "head_weight_decay", "adapter_weight_decay", "lora_plus", "layer_decay"}
)


def group_settings(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a module's arguments that :func:`parameter_groups` takes as they are."""
    return {name: value for name, value in arguments.items() if name in _GROUP_SETTINGS}


class ReadyModule(pl.LightningModule):
    """A backbone with its loss and metrics, for any kind of input.

    Attributes:
        noun: ``"images"`` or ``"texts"``, for messages.
        task: The task.
        num_classes: Number of classes, labels or numbers.
        class_names: Name of each, if known.
        backbone: The network, with its head.
        lr: Learning rate.
        weight_decay: Weight decay of the parameters that decay.
        group_settings: More arguments of :func:`parameter_groups`.
        optimizer: Called with the parameter groups; None is AdamW.
    """

    noun: ClassVar[str] = "images"
    task: str
    num_classes: int
    class_names: list[str] | None
    backbone: nn.Module
    lr: float
    weight_decay: float
    group_settings: dict[str, Any]
    optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None

    def _measure_with(self, val: MetricCollection, test: MetricCollection) -> None:
        """Keep the metrics of each stage, and collect the outputs of the test for the tables."""
        self.val_metrics = val.clone(prefix="val/")
        self.test_metrics = test.clone(prefix="test/")
        self.test_record = Gathered()
        self._results: Evaluation | None = None

    @property
    def outputs(self) -> Outputs:
        """The conversion of the outputs of the head."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Compare the data module's task and classes, if it has them, with the head."""
        if stage == "fit" and (wrong := monitors_of_test(self.trainer)):
            raise DataError("Expected nothing to be chosen on the test set: " + "; ".join(wrong))
        data = getattr(self.trainer, "datamodule", None)
        found = getattr(data, "num_classes", None)
        task = getattr(data, "task", None)
        task = task if task in MAIN else self.task  # the name may mean something else
        # two classes need one output or two
        same = task == self.task or {task, self.task} == {"binary", "multiclass"}
        if not same:
            raise DataError(
                f"Expected data of the task '{self.task}', got '{task}' from "
                f"{type(data).__name__}. Build the module for that task."
            )
        if found is not None and found != self.num_classes:
            raise DataError(
                f"Expected data of {self.num_classes} classes, as the head has, got {found} from "
                f"{type(data).__name__}. Build the module with num_classes={found}."
            )
        if self.noun == "texts":
            refuse_unreadable(self.backbone, data, stage)
        names = getattr(data, "class_names", None)
        if self.class_names is None and names is not None:
            self.class_names = [str(name) for name in names]

    def on_validation_epoch_start(self) -> None:
        """Reset the state of an interrupted validation."""
        begin_anew(self.val_metrics)

    def validation_step(self, batch: tuple[Any, Tensor], batch_idx: int) -> None:
        """Add a batch to the validation metrics."""
        self._evaluate(batch, batch_idx, "val", self.val_metrics)

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics over all batches and ranks."""
        self.log_dict(values_of(self.val_metrics), prog_bar=True, sync_dist=True)
        self.val_metrics.reset()

    def on_test_epoch_start(self) -> None:
        """Reset the state of an earlier test."""
        begin_anew(self.test_metrics)
        self.test_record.reset()
        self._results = None

    def test_step(self, batch: tuple[Any, Tensor], batch_idx: int) -> None:
        """Add a batch to the test metrics."""
        found, targets = self._evaluate(batch, batch_idx, "test", self.test_metrics)
        self.test_record.update(self._recorded(found), targets)

    def on_test_epoch_end(self) -> None:
        """Log the test metrics over all batches and ranks, and keep the tables."""
        scores = {name: float(value) for name, value in values_of(self.test_metrics).items()}
        self._results = self._tables(scores, *self.test_record.compute())
        self.log_dict(self._results.metrics, sync_dist=True)
        self.test_metrics.reset()
        self.test_record.reset()

    def test_results(self) -> Evaluation:
        """Return the last test's metrics and tables.

        Raises:
            DataError: If the module has not been tested.
        """
        if self._results is None:
            raise DataError("Expected a tested module, got none: call trainer.test(module) first.")
        return self._results

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer over the trained parameters, with weight decay where it belongs."""
        groups = parameter_groups(self, self.lr, self.weight_decay, **self.group_settings)
        return torch.optim.AdamW(groups) if self.optimizer is None else self.optimizer(groups)

    def _evaluate(
        self, batch: tuple[Any, Tensor], batch_idx: int, stage: str, metrics: MetricCollection
    ) -> tuple[Tensor, Tensor]:
        inputs, targets = batch
        self._check_targets(targets, batch_idx)
        found = self(inputs).float()
        loss = self._loss(found, targets)
        self.log(f"{stage}/loss", loss, prog_bar=True, batch_size=len(targets), sync_dist=True)
        metrics.update(*self._scored(found, targets))
        return found, targets

    def _check_targets(self, targets: Tensor, batch_idx: int) -> None:
        """Refuse targets that the head cannot have."""
        raise NotImplementedError

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the evaluation loss, without smoothing, mixing or weights."""
        raise NotImplementedError

    def _scored(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the inputs of the metrics."""
        raise NotImplementedError

    def _recorded(self, outputs: Tensor) -> Tensor:
        """Return the outputs to keep for each image or text of the test."""
        raise NotImplementedError

    def _tables(self, scores: dict[str, float], outputs: Tensor, targets: Tensor) -> Evaluation:
        """Return the results of the test."""
        raise NotImplementedError


class ImageModule(ReadyModule):
    """The base class of :class:`ImageClassifier` and :class:`ImageRegressor`."""

    @property
    def data_config(self) -> DataConfig:
        """The size, channels and normalisation of images that the backbone expects."""
        return data_config(self.backbone)

    def forward(self, images: Tensor) -> Tensor:
        """Return the outputs of the head ``(B, K)`` for images ``(B, C, H, W)``."""
        found: Tensor = self.backbone(images)
        return found


def monitors_of_test(trainer: Any) -> list[str]:
    """Find the callbacks that monitor a metric of the test set.

    Choosing a checkpoint or the end of training on the test images makes their score a training
    score.

    Args:
        trainer: A trainer, or anything that has ``callbacks``.

    Returns:
        A sentence for each.
    """
    found = []
    for callback in getattr(trainer, "callbacks", ()):
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str) and is_test(monitor):
            instead = f"val/{monitor.partition('/')[2]}"
            found.append(
                f"{type(callback).__name__} watches {monitor}; watch {instead}, and use the "
                "test set after all choices"
            )
    return found
