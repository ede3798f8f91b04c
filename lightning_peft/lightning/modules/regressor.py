"""The base class of the ready regressors, for any input: standardised numbers, and their units."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_peft.errors import DataError, near
from lightning_peft.evaluation.metric_names import Task
from lightning_peft.evaluation.metrics import metric_set
from lightning_peft.evaluation.outputs import Outputs
from lightning_peft.evaluation.results import Evaluation, per_number_table
from lightning_peft.lightning.modules.base import ReadyModule
from lightning_peft.lightning.modules.build import check_arguments

__all__ = ["RegressorModule"]

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "smooth_l1": F.smooth_l1_loss,
}


class RegressorModule(ReadyModule):
    """Losses, metrics, tables and predictions of a regressor.

    A subclass calls :meth:`_regress` with its arguments, builds ``backbone`` with a head of
    ``num_classes`` outputs, and defines ``forward``.
    """

    task: Task = "regression"
    target_mean: Tensor
    target_std: Tensor

    def _regress(
        self,
        *,
        num_outputs: int,
        class_names: Sequence[str] | None,
        loss: str,
        target_mean: float | Sequence[float] | None,
        target_std: float | Sequence[float] | None,
        lr: float,
        weight_decay: float,
        groups: dict[str, Any],
        optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None,
        parts: Mapping[str, float],
    ) -> None:
        """Check and keep the arguments that all regressors have.

        Args:
            num_outputs: How many numbers to predict.
            class_names: Name of each.
            loss: The name of the loss.
            target_mean: Mean of each number.
            target_std: Standard deviation of each.
            lr: Learning rate.
            weight_decay: Weight decay.
            groups: More arguments of :func:`parameter_groups`.
            optimizer: Called with the parameter groups.
            parts: More arguments that have to be in [0, 1), for the check.

        Raises:
            DataError: Listing all values that are out of range.
        """
        check_arguments(
            num_classes=num_outputs,
            class_names=class_names,
            parts=parts,
            amounts={},
            task=self.task,
        )
        if loss not in LOSSES:
            raise DataError(f"Expected a loss, got '{loss}'. {near(loss, LOSSES)}")
        self.num_classes = num_outputs
        self.class_names = None if class_names is None else list(class_names)
        self.loss = loss
        self.lr = lr
        self.weight_decay = weight_decay
        self.group_settings = groups
        self.optimizer = optimizer
        for name in ("target_mean", "target_std"):
            self.register_buffer(name, torch.full((num_outputs,), float("nan")))
        if (target_mean is None) != (target_std is None):
            raise DataError("Expected both target_mean and target_std, or neither, got one.")
        if target_mean is not None and target_std is not None:
            self._standardise(target_mean, target_std)
        metrics = metric_set("regression", num_outputs=num_outputs)
        self._measure_with(metrics, metrics)

    @property
    def outputs(self) -> Outputs:
        """The conversion of the outputs of the head to numbers in the unit of the data."""
        mean, std = tuple(self.target_mean.tolist()), tuple(self.target_std.tolist())
        return Outputs("regression", mean=mean, std=std)

    def setup(self, stage: str) -> None:
        """Use the mean and deviation of the training numbers; a checkpoint may replace them."""
        super().setup(stage)
        if bool(self.target_mean.isfinite().all()):
            return
        data = getattr(self.trainer, "datamodule", None)
        statistics = getattr(data, "target_statistics", None)
        if statistics is not None:
            self._standardise(*statistics())
        elif stage == "fit":
            raise DataError(
                "Expected the mean and deviation of the training numbers, got neither: give "
                "target_mean and target_std (0 and 1 leave the numbers as they are), or a data "
                "module with target_statistics()."
            )

    def training_step(self, batch: tuple[Any, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch, on standardised numbers."""
        inputs, targets = batch
        self._check_targets(targets, batch_idx)
        loss = self._loss(self(inputs).float(), targets)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(targets))
        return loss

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Return ``predictions`` in the unit of the data: ``(B, K)``, or ``(B,)`` if K is 1."""
        inputs = batch[0] if isinstance(batch, list | tuple) else batch
        return {"predictions": self._in_units(self(inputs).float())}

    def _standardise(self, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        found = [torch.as_tensor(values, dtype=torch.float32).reshape(-1) for values in (mean, std)]
        for values in found:
            if len(values) not in (1, self.num_classes) or not bool(values.isfinite().all()):
                raise DataError(
                    f"Expected a mean and a deviation of each of {self.num_classes} numbers, got "
                    f"{mean} and {std}."
                )
        if not bool((found[1] > 0).all()):
            raise DataError(
                f"Expected numbers that vary over the training {self.noun}, got a deviation of "
                f"{found[1].tolist()}. A number that is always the same cannot be learned."
            )
        self.target_mean.copy_(found[0].expand(self.num_classes))
        self.target_std.copy_(found[1].expand(self.num_classes))

    def _in_units(self, outputs: Tensor) -> Tensor:
        numbers = outputs * self.target_std + self.target_mean
        return numbers.squeeze(-1) if self.num_classes == 1 else numbers

    def _check_targets(self, targets: Tensor, batch_idx: int) -> None:
        wanted = (len(targets),) if self.num_classes == 1 else (len(targets), self.num_classes)
        if targets.shape not in (wanted, (len(targets), self.num_classes)):
            raise DataError(
                f"Expected {self.num_classes} number(s) for each {self.noun[:-1]}, shape "
                f"{('B', *wanted[1:])}, got shape {tuple(targets.shape)}."
            )
        if targets.device.type == "cpu" and not bool(targets.isfinite().all()):
            raise DataError("Expected finite numbers, got NaN or infinity among the targets.")

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        truth = targets.float().reshape(outputs.shape)
        return LOSSES[self.loss](outputs, (truth - self.target_mean) / self.target_std)

    def _scored(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        numbers = self._in_units(outputs)
        return numbers, targets.float().reshape(numbers.shape)

    def _recorded(self, outputs: Tensor) -> Tensor:
        return self._in_units(outputs).reshape(len(outputs), self.num_classes)

    def _tables(self, scores: dict[str, float], outputs: Tensor, targets: Tensor) -> Evaluation:
        truth = targets.float().reshape(outputs.shape)
        rows = per_number_table(outputs, truth, self.class_names)
        return Evaluation(scores, task=self.task, outputs=outputs, targets=truth, numbers=rows)
