"""A ready regressor: numbers from texts or pairs of texts, on any Hugging Face encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lightning_peft.anatomy.forward import first_tensor
from lightning_peft.backbones.hugging_face import load_sequence_classifier
from lightning_peft.lightning.modules.base import group_settings
from lightning_peft.lightning.modules.build import check_head_of_model, plain
from lightning_peft.lightning.modules.regressor import RegressorModule

__all__ = ["TextRegressor"]


class TextRegressor(RegressorModule):
    """Predicts numbers from texts or pairs of them, with a Hugging Face encoder and a new head.

    It is independent of adapters: without ``lp.PEFT`` it fine-tunes all parameters. A batch is a
    pair of the tokeniser's output (a mapping of tensors ``(B, T)``) and numbers, as from
    :class:`~lightning_peft.TextDataModule`. The head learns standardised numbers (mean 0 and
    deviation 1 over the training texts); logged metrics and predictions are in the unit of the
    data, and are those of :class:`~lightning_peft.ImageRegressor`.

    Args:
        backbone: A name on the Hugging Face hub or a local directory, for
            ``AutoModelForSequenceClassification``; or such a model, which keeps its head. A model
            is not among the hyperparameters of a checkpoint.
        num_outputs: How many numbers to predict for a text.
        pretrained: Start from the encoder's pretrained weights.
        backbone_kwargs: Values of the model's config to change, such as ``hidden_dropout_prob``.
        head_dropout: Probability of dropping a feature before the head, during training; None
            keeps the model's own.
        loss: ``"mse"``, or ``"smooth_l1"``, on which large errors have less influence.
        target_mean: Mean of each number; by default that of the training texts, from the data
            module's ``target_statistics()``. It is in the ``state_dict``.
        target_std: Standard deviation of each, the same.
        lr: Learning rate.
        weight_decay: Weight decay of the parameters that decay (see :func:`parameter_groups`).
        head_lr: A separate learning rate for the head.
        head_weight_decay: A separate weight decay for the head.
        adapter_weight_decay: A separate weight decay for adapters.
        lora_plus: How many times as fast as A the factor B of low-rank updates learns (LoRA+).
        layer_decay: Factor of the learning rate from each block to the one before it; None is 1.
        optimizer: Called with the parameter groups; AdamW by default.
        class_names: Name of each number, for the tables; by default those of the data module.

    Raises:
        DataError: If there is no such model, or a value is out of its range; at :meth:`setup`, if
            the data has other numbers than the head, their mean and deviation are not known, or a
            callback monitors a metric of the test set.
        MissingExtraError: If transformers is not installed.

    >>> from transformers import BertConfig, BertModel
    >>> import lightning_peft as lp
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    >>> encoder = BertModel(BertConfig(vocab_size=16, num_labels=1, num_attention_heads=2, **sizes))
    >>> module = lp.TextRegressor(encoder)
    """

    noun: ClassVar[str] = "texts"

    def __init__(
        self,
        backbone: str | nn.Module,
        num_outputs: int = 1,
        *,
        pretrained: bool = True,
        backbone_kwargs: Mapping[str, Any] | None = None,
        head_dropout: float | None = None,
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
        # Hydra passes its own container types, which must not end up in a checkpoint
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
            parts={} if head_dropout is None else {"head_dropout": head_dropout},
        )
        if isinstance(backbone, nn.Module):
            check_head_of_model(backbone, num_outputs, head_dropout, backbone_kwargs)
            self.backbone = backbone
        else:
            self.backbone = load_sequence_classifier(
                backbone,
                num_outputs,
                pretrained=pretrained,
                head_dropout=head_dropout,
                options=backbone_kwargs,
            )

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return standardised numbers ``(B, K)`` for a tokeniser's output, tensors ``(B, T)``."""
        return first_tensor(self.backbone(**inputs))
