"""A ready regressor: numbers from images, on any timm backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_peft.errors import DataError, near
from lightning_peft.evaluation.metric_names import Task
from lightning_peft.evaluation.metrics import metric_set
from lightning_peft.evaluation.outputs import Outputs
from lightning_peft.evaluation.results import Evaluation, per_number_table
from lightning_peft.lightning.modules.base import ImageModule
from lightning_peft.lightning.modules.build import build_backbone, check_arguments, plain

__all__ = ["ImageRegressor"]

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "smooth_l1": F.smooth_l1_loss,
}


class ImageRegressor(ImageModule):
    """Predicts numbers from images with a timm backbone and a new head.

    It is independent of adapters: without ``lp.PEFT`` it fine-tunes all parameters. The head learns
    standardised numbers (mean 0 and deviation 1 over the training images); logged metrics and
    predictions are in the unit of the data.

    | Logged | When | What |
    | --- | --- | --- |
    | `train/loss` | each step | the loss, of standardised numbers |
    | `val/loss`, `test/loss` | each epoch | the same |
    | `val/rmse`, `val/mae`, `test/...` | each epoch | errors in the unit of the data; of several numbers the mean |
    | `val/r2`, `val/pearson`, `val/spearman`, `test/...` | each epoch | 1 is perfect |

    Args:
        backbone: A timm name, or a module that maps images to ``(B, num_outputs)``, which keeps its
            head. A module is not among the hyperparameters of a checkpoint.
        num_outputs: How many numbers to predict for an image.
        pretrained: Start from the backbone's pretrained weights.
        backbone_kwargs: More arguments of ``timm.create_model``.
        head_dropout: Probability of dropping a feature before the head, during training.
        drop_path: Probability of skipping a residual branch, at the last block.
        loss: ``"mse"``, or ``"smooth_l1"``, on which large errors have less influence.
        target_mean: Mean of each number; by default that of the training images, from the data
            module's ``target_statistics()``. It is in the ``state_dict``.
        target_std: Standard deviation of each, the same.
        lr: Learning rate.
        weight_decay: Weight decay of the parameters that decay.
        head_lr: A separate learning rate for the head.
        head_weight_decay: A separate weight decay for the head.
        adapter_weight_decay: A separate weight decay for adapters.
        lora_plus: How many times as fast as A the factor B of low-rank updates learns (LoRA+).
        layer_decay: Factor of the learning rate from each block to the one before it; None is 1.
        optimizer: Called with the parameter groups; AdamW by default.
        class_names: Name of each number, for the tables; by default those of the data module.

    Raises:
        DataError: If a value is out of its range; at :meth:`setup`, if the data has other numbers
            than the head, their mean and deviation are not known, or a callback monitors a metric
            of the test set.

    >>> import torch
    >>> import lightning_peft as lp
    >>> module = lp.ImageRegressor("test_vit", num_outputs=2, pretrained=False)
    >>> module(torch.zeros(3, 3, 160, 160)).shape
    torch.Size([3, 2])
    """  # noqa: E501

    task: Task = "regression"

    def __init__(
        self,
        backbone: str | nn.Module = "glyph_vit",
        num_outputs: int = 1,
        *,
        pretrained: bool = True,
        backbone_kwargs: Mapping[str, Any] | None = None,
        head_dropout: float = 0.0,
        drop_path: float = 0.0,
        loss: Literal["mse", "smooth_l1"] = "mse",
        target_mean: float | Sequence[float] | None = None,
        target_std: float | Sequence[float] | None = None,
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
        backbone_kwargs = plain(backbone_kwargs or {})
        target_mean, target_std = plain(target_mean), plain(target_std)
        class_names = None if class_names is None else [str(name) for name in class_names]
        check_arguments(
            num_classes=num_outputs,
            class_names=class_names,
            parts={"head_dropout": head_dropout, "drop_path": drop_path},
            amounts={},
            task=self.task,
        )
        if loss not in LOSSES:
            raise DataError(f"Expected a loss, got '{loss}'. {near(loss, LOSSES)}")
        ignored = ["optimizer"] if isinstance(backbone, str) else ["backbone", "optimizer"]
        self.save_hyperparameters(ignore=ignored)
        self.num_classes = num_outputs
        self.class_names = class_names
        self.loss = loss
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
            num_outputs,
            pretrained,
            backbone_kwargs,
            {"drop_rate": head_dropout, "drop_path_rate": drop_path},
        )
        self.target_mean: Tensor
        self.target_std: Tensor
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

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch, on standardised numbers."""
        images, targets = batch
        self._check_targets(targets, batch_idx)
        loss = self._loss(self(images).float(), targets)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(images))
        return loss

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Return ``predictions`` in the unit of the data: ``(B, K)``, or ``(B,)`` if K is 1."""
        images = batch[0] if isinstance(batch, list | tuple) else batch
        return {"predictions": self._in_units(self(images).float())}

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
                f"Expected numbers that vary over the training images, got a deviation of "
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
                f"Expected {self.num_classes} number(s) for each image, shape "
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
