"""A ready classifier of texts on any Hugging Face encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_peft.anatomy.forward import first_tensor
from lightning_peft.backbones.hugging_face import load_sequence_classifier
from lightning_peft.evaluation.metric_names import Task
from lightning_peft.evaluation.outputs import head_size
from lightning_peft.lightning.modules.base import group_settings
from lightning_peft.lightning.modules.build import check_head_of_model, plain
from lightning_peft.lightning.modules.classifier import ClassifierModule

__all__ = ["TextClassifier"]


class TextClassifier(ClassifierModule):
    """Classifies texts, or pairs of texts, with an encoder of Hugging Face and a new head.

    It is independent of adapters: without ``lp.PEFT`` it fine-tunes all parameters. A batch is a
    pair of the tokeniser's output (a mapping of tensors ``(B, T)``) and labels, as from
    :class:`~lightning_peft.lightning.datamodules.text.TextDataModule`. Logged metrics, tasks, the
    tables of a test and the temperature are those of
    :class:`~lightning_peft.lightning.modules.image.ImageClassifier`.

    Args:
        backbone: A name on the Hugging Face hub or a local directory, for
            ``AutoModelForSequenceClassification``; or a module that maps ``input_ids``,
            ``attention_mask`` and the other outputs of its tokeniser to logits, which keeps
            its head. A module is not among the hyperparameters of a checkpoint:
            ``load_from_checkpoint(path, backbone=module)``.
        num_classes: Number of classes.
        pretrained: Start from the encoder's pretrained weights.
        backbone_kwargs: Values of the model's config to change, such as ``hidden_dropout_prob``.
        head_dropout: Probability of dropping a feature before the head, during training; None
            keeps the model's own.
        label_smoothing: Fraction of the target that is spread over all classes, in [0, 1).
        lr: Learning rate.
        weight_decay: Weight decay of the parameters that decay (see :func:`parameter_groups`).
        head_lr: A separate learning rate for the head.
        head_weight_decay: A separate weight decay for the head.
        adapter_weight_decay: A separate weight decay for adapters.
        lora_plus: How many times as fast as A the factor B of low-rank updates learns (LoRA+).
        layer_decay: Factor of the learning rate from each block to the one before it; None is 1.
        optimizer: Called with the parameter groups; AdamW by default. It is not among the
            hyperparameters of a checkpoint.
        class_names: Name of each class, for the tables; by default those of the data module.
        task: ``"multiclass"``, ``"binary"`` (two classes, one logit) or ``"multilabel"``.
        temperature: The divisor of logits before they become probabilities.

    Raises:
        DataError: If there is no such model, a value is out of its range, or the number of
            class names differs from the classes; at :meth:`setup` or the first batch, if the data
            has other classes than the head, or if a callback monitors a metric of the test set.
        MissingExtraError: If transformers is not installed.

    >>> from transformers import BertConfig, BertModel
    >>> import lightning_peft as lp
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    >>> encoder = BertModel(BertConfig(vocab_size=16, num_labels=3, num_attention_heads=2, **sizes))
    >>> module = lp.TextClassifier(encoder, num_classes=3)
    """

    noun: ClassVar[str] = "texts"

    def __init__(
        self,
        backbone: str | nn.Module,
        num_classes: int = 2,
        *,
        pretrained: bool = True,
        backbone_kwargs: Mapping[str, Any] | None = None,
        head_dropout: float | None = None,
        label_smoothing: float = 0.0,
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
            parts={} if head_dropout is None else {"head_dropout": head_dropout},
            amounts={},
        )
        size = head_size(task, num_classes)
        if isinstance(backbone, nn.Module):
            check_head_of_model(backbone, size, head_dropout, backbone_kwargs)
            self.backbone = backbone
        else:
            self.backbone = load_sequence_classifier(
                backbone,
                size,
                pretrained=pretrained,
                head_dropout=head_dropout,
                options=backbone_kwargs,
            )

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return logits ``(B, K)`` for a tokeniser's output, tensors ``(B, T)``."""
        return first_tensor(self.backbone(**inputs))
