"""A ready regressor: numbers from images, on any timm backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from lightning_peft.lightning.modules.base import ImageModule, group_settings
from lightning_peft.lightning.modules.build import build_backbone, plain
from lightning_peft.lightning.modules.regressor import RegressorModule

__all__ = ["ImageRegressor"]


class ImageRegressor(RegressorModule, ImageModule):
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
        ignored = ["optimizer"] if isinstance(backbone, str) else ["backbone", "optimizer"]
        self.save_hyperparameters(ignore=ignored)
        self._regress(
            num_outputs=num_outputs,
            class_names=class_names,
            loss=loss,
            target_mean=target_mean,
            target_std=target_std,
            lr=lr,
            weight_decay=weight_decay,
            groups=group_settings(locals()),
            optimizer=optimizer,
            parts={"head_dropout": head_dropout, "drop_path": drop_path},
        )
        self.backbone = build_backbone(
            backbone,
            num_outputs,
            pretrained,
            backbone_kwargs,
            {"drop_rate": head_dropout, "drop_path_rate": drop_path},
        )
