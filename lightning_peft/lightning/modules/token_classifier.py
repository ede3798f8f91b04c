"""A ready classifier of words on any Hugging Face encoder: named entities, parts of speech."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection

from lightning_peft.anatomy.forward import first_tensor
from lightning_peft.backbones.hugging_face import load_token_classifier
from lightning_peft.errors import DataError
from lightning_peft.evaluation.outputs import Outputs
from lightning_peft.evaluation.results import Evaluation
from lightning_peft.evaluation.tags import TagCounts, TagScores, per_type_table
from lightning_peft.lightning.modules.base import ReadyModule, group_settings
from lightning_peft.lightning.modules.build import check_arguments, check_head_of_model, plain

__all__ = ["TokenClassifier"]

IGNORED = -100


class TokenClassifier(ReadyModule):
    """Gives every word of a text a tag, with an encoder of Hugging Face and a new head.

    It is independent of adapters: without ``lp.PEFT`` it fine-tunes all parameters. A batch is a
    pair of the tokeniser's output (a mapping of tensors ``(B, T)``) and tags ``(B, T)``, -100 where
    a token has none, as from :class:`~lightning_peft.TextDataModule`.

    | Logged | When | What |
    | --- | --- | --- |
    | `train/loss` | each step | cross entropy of the tagged tokens |
    | `val/loss`, `test/loss` | each epoch | the mean over all tagged tokens |
    | `val/f1`, `val/precision`, `val/recall`, `test/...` | each epoch | of entities, all together, as by `seqeval`; without prefixes such as `B-` the mean of the tags |
    | `val/accuracy`, `test/accuracy` | each epoch | of words |

    Args:
        backbone: A name on the Hugging Face hub or a local directory, for
            ``AutoModelForTokenClassification``; or such a model, which keeps its head. A model is
            not among the hyperparameters of a checkpoint.
        num_classes: Number of tags.
        class_names: The tags, in the order of their numbers, such as ``B-PER``; by default those
            of the data module. They say what an entity is.
        pretrained: Start from the encoder's pretrained weights.
        backbone_kwargs: Values of the model's config to change, such as ``hidden_dropout_prob``.
        head_dropout: Probability of dropping a feature before the head, during training; None
            keeps the model's own.
        label_smoothing: Fraction of the target that is spread over all tags, in [0, 1).
        lr: Learning rate.
        weight_decay: Weight decay of the parameters that decay (see :func:`parameter_groups`).
        head_lr: A separate learning rate for the head.
        head_weight_decay: A separate weight decay for the head.
        adapter_weight_decay: A separate weight decay for adapters.
        lora_plus: How many times as fast as A the factor B of low-rank updates learns (LoRA+).
        layer_decay: Factor of the learning rate from each block to the one before it; None is 1.
        optimizer: Called with the parameter groups; AdamW by default.

    Raises:
        DataError: If there is no such model, or a value is out of its range; at :meth:`setup` or
            the first batch, if the data has other tags than the head, or their names are not known;
            if a callback monitors a metric of the test set.
        MissingExtraError: If transformers is not installed, or seqeval to measure entities.

    >>> from transformers import BertConfig, BertModel
    >>> import lightning_peft as lp
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    >>> encoder = BertModel(BertConfig(vocab_size=16, num_labels=3, num_attention_heads=2, **sizes))
    >>> module = lp.TokenClassifier(encoder, class_names=["O", "B-PER", "I-PER"])
    """  # noqa: E501

    noun: ClassVar[str] = "texts"
    task: str = "token_classification"

    def __init__(
        self,
        backbone: str | nn.Module,
        num_classes: int | None = None,
        *,
        class_names: Sequence[str] | None = None,
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
    ) -> None:
        super().__init__()
        # Hydra passes its own container types, which must not end up in a checkpoint
        backbone_kwargs = plain(backbone_kwargs or {})
        class_names = None if class_names is None else [str(name) for name in class_names]
        if num_classes is None:
            num_classes = len(class_names or ())
        ignored = ["optimizer"] if isinstance(backbone, str) else ["backbone", "optimizer"]
        self.save_hyperparameters(ignore=ignored)
        check_arguments(
            num_classes=num_classes,
            class_names=class_names,
            parts={"head_dropout": head_dropout or 0.0, "label_smoothing": label_smoothing},
            amounts={},
        )
        self.num_classes = num_classes
        self.class_names = class_names
        self.label_smoothing = label_smoothing
        self.lr = lr
        self.weight_decay = weight_decay
        self.group_settings = group_settings(locals())
        self.optimizer = optimizer
        if isinstance(backbone, nn.Module):
            check_head_of_model(backbone, num_classes, head_dropout, backbone_kwargs)
            self.backbone = backbone
        else:
            self.backbone = load_token_classifier(
                backbone,
                num_classes,
                pretrained=pretrained,
                head_dropout=head_dropout,
                options=backbone_kwargs,
            )
        metrics = MetricCollection({"tags": TagScores(num_classes)})
        self._measure_with(metrics, metrics)
        self._counts: TagCounts | None = None

    @property
    def outputs(self) -> Outputs:
        """The conversion of logits to probabilities."""
        return Outputs()

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return logits ``(B, T, K)`` for a tokeniser's output, tensors ``(B, T)``."""
        return first_tensor(self.backbone(**inputs))

    def setup(self, stage: str) -> None:
        """Compare the tags of the data module with the head, and find out what an entity is."""
        super().setup(stage)
        if self.class_names is None:
            if stage == "predict":
                return
            raise DataError(
                "Expected the names of the tags, which say what an entity is, got none: pass "
                "class_names=[...] ('O', 'B-PER', ...), or use a data module with class_names."
            )
        self._counts = TagCounts(self.class_names)
        for metrics in (self.val_metrics, self.test_metrics):
            for metric in metrics.values():
                metric.entities = self._counts.entities

    def training_step(self, batch: tuple[Any, Tensor], batch_idx: int) -> Tensor:
        """Return the cross entropy of the tagged tokens of a batch."""
        inputs, tags = batch
        self._check_targets(tags, batch_idx)
        loss = self._cross_entropy(self(inputs).float(), tags, self.label_smoothing)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(tags))
        return loss

    def test_step(self, batch: tuple[Any, Tensor], batch_idx: int) -> None:
        """Add a batch to the test metrics."""
        counts, tags = self._evaluate(batch, batch_idx, "test", self.test_metrics)
        entities = self._counts is not None and self._counts.entities
        self.test_record.update(counts, torch.full((len(tags),), entities, device=tags.device))

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Return ``predictions``, the tag of each token ``(B, T)``, by number."""
        inputs = batch[0] if isinstance(batch, list | tuple) else batch
        return {"predictions": self(inputs).argmax(-1)}

    def _evaluate(
        self, batch: tuple[Any, Tensor], batch_idx: int, stage: str, metrics: MetricCollection
    ) -> tuple[Tensor, Tensor]:
        """Log the loss, and return the counts of each text."""
        inputs, tags = batch
        self._check_targets(tags, batch_idx)
        logits = self(inputs).float()
        tokens = int((tags != IGNORED).sum())
        # weighed by tokens, so that the mean does not depend on the batches
        loss = self._cross_entropy(logits, tags)
        self.log(f"{stage}/loss", loss, prog_bar=True, batch_size=tokens or 1, sync_dist=True)
        assert self._counts is not None
        # in float32, since not every device has float64
        counts = self._counts(logits.argmax(-1), tags).float().to(tags.device)
        metrics.update(counts)
        return counts, tags

    def _cross_entropy(self, logits: Tensor, tags: Tensor, smoothing: float = 0.0) -> Tensor:
        found = logits.flatten(0, 1), tags.flatten()
        total = F.cross_entropy(
            *found, ignore_index=IGNORED, label_smoothing=smoothing, reduction="sum"
        )
        # a batch of texts without a tag has a loss of 0, and not 0 of 0
        return total / (tags != IGNORED).sum().clamp(min=1)

    def _check_targets(self, tags: Tensor, batch_idx: int) -> None:
        if tags.device.type != "cpu" and batch_idx:  # reading them waits for the GPU
            return
        if tags.dim() != 2 or tags.is_floating_point():
            raise DataError(
                f"Expected a tag for each token, shape (B, T), got {tags.dtype} of shape "
                f"{tuple(tags.shape)}. One label for a text is for TextClassifier."
            )
        found = tags[tags != IGNORED]
        if len(found) and (int(found.min()) < 0 or int(found.max()) >= self.num_classes):
            raise DataError(
                f"Expected tags from 0 to {self.num_classes - 1}, as the head has "
                f"{self.num_classes}, or {IGNORED} for none, got tags from {int(found.min())} to "
                f"{int(found.max())}. Build the module with the tags of the data."
            )

    def _tables(self, scores: dict[str, float], outputs: Tensor, targets: Tensor) -> Evaluation:
        assert self._counts is not None
        rows = per_type_table(outputs.double().sum(0), self._counts.types)
        return Evaluation(scores, rows, task=self.task, outputs=outputs, targets=targets)
