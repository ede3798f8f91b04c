"""A ready module for any Hugging Face model that maps texts to texts: summaries, translations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchmetrics.text import ROUGEScore

from lightning_peft.backbones.causal_lm import length_limit, load_seq2seq_lm
from lightning_peft.errors import DataError
from lightning_peft.evaluation.metrics import begin_anew
from lightning_peft.lightning.modules.base import group_settings
from lightning_peft.lightning.modules.build import plain
from lightning_peft.lightning.modules.generation import Sample, log_samples
from lightning_peft.lightning.modules.language import LanguageModule
from lightning_peft.lightning.modules.language_checks import target_problems
from lightning_peft.lightning.modules.target_writing import TargetWriter

__all__ = ["Seq2SeqLM"]

IGNORED = -100
ROUGES = ("rouge1", "rouge2", "rougeL")


class Seq2SeqLM(LanguageModule):
    """Trains a model with an encoder and a decoder (T5, BART) to write a text for a text.

    It is independent of adapters: without ``lp.PEFT`` it fine-tunes all parameters. A batch is a
    mapping of tensors: ``input_ids`` and ``attention_mask`` ``(B, T)``, and ``labels`` ``(B, S)``
    (-100 where a target is padded), as from :class:`~lightning_peft.TextDataModule`. The loss is
    the model's own.

    | Logged | When | What |
    | --- | --- | --- |
    | `train/loss` | each step | of a batch |
    | `val/loss`, `test/loss` | each epoch | cross entropy, the mean over all tokens of the targets (nats) |
    | `val/rouge1`, `val/rouge2`, `val/rougeL`, `test/...` | each epoch | F of shared words, of pairs of words, and of the longest shared sequence, between what the model writes for a text and its target, by torchmetrics; the mean of the texts. They know the letters a to z and digits only |

    A text is written for every validation text, which takes a while; ``limit_val_batches`` of the
    trainer takes some. The first few are in :attr:`latest`, and each logger gets them: TensorBoard
    and Weights & Biases as texts, others as ``samples.jsonl`` in their directory.

    Args:
        backbone: A name on the Hugging Face hub or a local directory, for
            ``AutoModelForSeq2SeqLM``; or such a model. A model is not among the hyperparameters of
            a checkpoint: ``load_from_checkpoint(path, backbone=model)``.
        pretrained: Start from the pretrained weights; otherwise the model is built from its config.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``, or ``"auto"`` as in the file.
        backbone_kwargs: Values of the model's config to change, such as ``dropout_rate``.
        tokenizer: A tokeniser, or the name of one; by default that of the data module, or of the
            backbone's name. A tokeniser is not among the hyperparameters of a checkpoint.
        lr: Learning rate.
        weight_decay: Weight decay of the parameters that decay (see :func:`parameter_groups`).
        head_lr: A separate learning rate for the head.
        head_weight_decay: A separate weight decay for the head.
        adapter_weight_decay: A separate weight decay for adapters.
        lora_plus: How many times as fast as A the factor B of low-rank updates learns (LoRA+).
        layer_decay: Factor of the learning rate from each block to the one before it; None is 1.
        optimizer: Called with the parameter groups; AdamW by default.
        samples: How many of the written texts to log after each validation.
        max_new_tokens: The most tokens to write for a text.
        generation: More arguments of transformers' ``generate``, such as ``num_beams``; greedy by
            default.

    Raises:
        DataError: If there is no such model or a value is out of its range; at :meth:`setup` or the
            first batch, if the tokeniser does not fit the embedding, sequences are longer than the
            model reads, or no token is learned.
        MissingExtraError: If transformers is not installed.

    >>> from transformers import T5Config, T5ForConditionalGeneration
    >>> import lightning_peft as lp
    >>> sizes = {"d_model": 8, "d_ff": 8, "d_kv": 4, "num_layers": 1, "num_heads": 2}
    >>> model = T5ForConditionalGeneration(T5Config(vocab_size=16, **sizes))
    >>> module = lp.Seq2SeqLM(model)
    """  # noqa: E501

    kind: ClassVar[str] = "seq2seq"
    _load = staticmethod(load_seq2seq_lm)

    def __init__(
        self,
        backbone: str | nn.Module,
        *,
        pretrained: bool = True,
        dtype: str = "float32",
        backbone_kwargs: Mapping[str, Any] | None = None,
        tokenizer: Any = None,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        head_lr: float | None = None,
        head_weight_decay: float | None = None,
        adapter_weight_decay: float | None = None,
        lora_plus: float | None = None,
        layer_decay: float | None = None,
        optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None = None,
        samples: int = 3,
        max_new_tokens: int = 64,
        generation: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        # Hydra passes its own container types, which must not end up in a checkpoint
        backbone_kwargs, generation = plain(backbone_kwargs or {}), plain(generation or {})
        ignored = [] if isinstance(backbone, str) else ["backbone"]
        ignored += [] if tokenizer is None or isinstance(tokenizer, str) else ["tokenizer"]
        self.save_hyperparameters(ignore=[*ignored, "optimizer"])
        wrong = [] if samples >= 0 else [f"samples of 0 or more, got {samples}"]
        if max_new_tokens < 1:
            wrong.append(f"max_new_tokens of 1 or more, got {max_new_tokens}")
        self._model(
            backbone,
            pretrained=pretrained,
            dtype=dtype,
            backbone_kwargs=backbone_kwargs,
            tokenizer=tokenizer,
            lr=lr,
            weight_decay=weight_decay,
            groups=group_settings(locals()),
            optimizer=optimizer,
            wrong=wrong,
        )
        self.samples = samples
        self.max_new_tokens = max_new_tokens
        self.generation = dict(generation)
        self.latest: list[Sample] = []
        """What the model wrote in the last validation, of its first texts."""
        self.val_rouge = ROUGEScore(rouge_keys=ROUGES)
        self.test_rouge = ROUGEScore(rouge_keys=ROUGES)

    def setup(self, stage: str) -> None:
        """Compare the data module's task, tokeniser and lengths with the model."""
        super().setup(stage)
        limit = length_limit(self.backbone)
        length = getattr(getattr(self.trainer, "datamodule", None), "max_target_length", None)
        if limit is not None and isinstance(length, int) and length > limit:
            raise DataError(
                f"Expected targets of at most the {limit} tokens that "
                f"{type(self.backbone).__name__} writes, got max_target_length={length}: set "
                f"max_target_length={limit}."
            )

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return logits ``(B, S, V)`` for a batch with ``labels`` or ``decoder_input_ids``."""
        logits: Tensor = self._called(inputs).logits
        return logits

    def generate(
        self, prompts: Any, *, max_new_tokens: int = 64, batch_size: int = 8, **options: Any
    ) -> Any:
        """Write a text for a text, greedily by default.

        Args:
            prompts: A text or a list of texts, with the prefix that the model wants, if any. What
                is longer than the tokeniser's limit is cut.
            max_new_tokens: The most tokens of each.
            batch_size: Texts at once.
            **options: As for the ``generate`` of transformers, such as ``num_beams=4``.

        Returns:
            A text; or a list of texts, for a list.

        Raises:
            DataError: If there is no tokeniser.
        """
        single = isinstance(prompts, str)
        found = self._writer()(
            [prompts] if single else list(prompts),
            tokenise=self._tokenised,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            **options,
        )
        return found[0] if single else found

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Return the model's loss of a batch."""
        self._check_batch(batch, "train")
        loss: Tensor = self._called(batch).loss
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["labels"]))
        return loss

    def on_validation_epoch_start(self) -> None:
        """Reset the state of an interrupted validation."""
        begin_anew(self.val_rouge)
        self.latest = []

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Write a text for each text of a batch, and add them to the validation metrics."""
        self.latest += self._evaluate(batch, "val", self.val_rouge)
        self.latest = self.latest[: self.samples]

    def on_validation_epoch_end(self) -> None:
        """Log ROUGE over all batches and ranks, and some of the texts."""
        self._log_rouge("val", self.val_rouge)
        if not self.trainer.sanity_checking and self.trainer.is_global_zero and self.latest:
            log_samples(self.trainer.loggers, self.latest, self.trainer.global_step)

    def on_test_epoch_start(self) -> None:
        """Reset the state of an earlier test."""
        begin_anew(self.test_rouge)

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Write a text for each text of a batch, and add them to the test metrics."""
        self._evaluate(batch, "test", self.test_rouge)

    def on_test_epoch_end(self) -> None:
        """Log ROUGE over all batches and ranks."""
        self._log_rouge("test", self.test_rouge)

    def predict_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> list[str]:
        """Return a text for each text of a batch."""
        return self._writer().written(batch, self.max_new_tokens, self.generation)

    def _evaluate(
        self, batch: Mapping[str, Tensor], stage: str, metric: ROUGEScore
    ) -> list[Sample]:
        self._check_batch(batch, stage)
        tokens = int((batch["labels"] != IGNORED).sum())
        # weighed by tokens, so that the mean does not depend on the batches
        loss = self._called(batch).loss
        self.log(f"{stage}/loss", loss, prog_bar=True, batch_size=tokens, sync_dist=True)
        writer = self._writer()
        found = writer.written(batch, self.max_new_tokens, self.generation)
        wanted = writer.read(batch["labels"])
        metric.update(found, wanted)
        texts = writer.read(batch["input_ids"])
        return [Sample(*row) for row in zip(texts, found, wanted, strict=True)]

    def _log_rouge(self, stage: str, metric: ROUGEScore) -> None:
        found = metric.compute()
        scores = {f"{stage}/{name}": found[f"{name}_fmeasure"] for name in ROUGES}
        self.log_dict(scores, prog_bar=True, sync_dist=True)
        metric.reset()

    def _writer(self) -> TargetWriter:
        return TargetWriter(self.backbone, self.tokenizer)

    def _tokenised(self, texts: Sequence[str]) -> Mapping[str, Tensor]:
        limit = length_limit(self.backbone)
        found: Mapping[str, Tensor] = self.tokenizer(
            list(texts), truncation=True, padding=True, return_tensors="pt",
            **({} if limit is None else {"max_length": limit}),
        )  # fmt: skip
        return found

    def _check_batch(self, batch: Any, stage: str) -> None:
        if stage not in self._checked:
            problems = target_problems(self.backbone, batch)
            if problems:
                raise DataError(f"Expected a batch ({stage}) with " + "; ".join(problems) + ".")
            self._checked.add(stage)
