"""A ready module for any causal language model of Hugging Face."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.text import Perplexity

from lightning_peft.adaptation.sharding import is_sharded
from lightning_peft.backbones.causal_lm import length_limit
from lightning_peft.data.chat_rows import IGNORED
from lightning_peft.evaluation.metrics import begin_anew
from lightning_peft.lightning.modules.base import group_settings
from lightning_peft.lightning.modules.build import plain
from lightning_peft.lightning.modules.generation import Generator, Sample, log_samples
from lightning_peft.lightning.modules.language import LanguageModule
from lightning_peft.lightning.modules.token_loss import TokenLoss

__all__ = ["CausalLM"]

log = logging.getLogger(__name__)


class CausalLM(LanguageModule):
    """Trains a causal language model on the labels of its batches.

    It is independent of adapters: without ``lp.PEFT`` it fine-tunes all parameters. A batch is a
    mapping of tensors ``(B, T)``: ``input_ids``, ``labels`` (not shifted; -100 where nothing is
    learned), and whatever else the model takes, such as ``attention_mask``; as from
    :class:`~lightning_peft.ChatDataModule`. The loss is the model's own; where its logits would be
    more than 16 million numbers, it is computed from some tokens at a time, and only from those
    with labels. In several processes a step learns from the mean over the tokens of all of them, as
    with the ``Trainer`` of transformers.

    | logged | |
    |---|---|
    | ``train/loss`` | of a batch, on the first process |
    | ``val/loss``, ``test/loss`` | cross entropy, the mean over all learned tokens (nats) |
    | ``val/perplexity``, ``test/perplexity`` | its exponential, by torchmetrics |

    After each validation the model answers a few prompts (``samples``), in the first process. They
    are in :attr:`latest`, and each logger gets them: TensorBoard and Weights & Biases as texts,
    others as ``samples.jsonl`` in their directory.

    Args:
        backbone: A name on the Hugging Face hub or a local directory, for
            ``AutoModelForCausalLM``; ``"byte_llama"``, a small model over bytes with random
            weights, which needs no network; or a model. A model is not among the hyperparameters
            of a checkpoint: ``load_from_checkpoint(path, backbone=model)``.
        pretrained: Start from the pretrained weights; otherwise the model is built from its config.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``, or ``"auto"`` as in the file.
        backbone_kwargs: Values of the model's config to change, such as ``attention_dropout``.
        tokenizer: A tokeniser, or the name of one; by default that of the data module, or of the
            backbone's name. A tokeniser is not among the hyperparameters of a checkpoint.
        lr: Learning rate.
        weight_decay: Weight decay of the parameters that decay (see :func:`parameter_groups`).
        head_lr: A separate learning rate for the head.
        head_weight_decay: A separate weight decay for the head.
        adapter_weight_decay: A separate weight decay for adapters.
        lora_plus: How many times as fast as A the factor B of low-rank updates learns (LoRA+).
        layer_decay: Factor of the learning rate from each block to the one before it; None is 1.
        optimizer: Called with the parameter groups; AdamW by default. It is not among the
            hyperparameters of a checkpoint.
        samples: How many prompts of the validation examples are answered after each validation, or
            the prompts themselves: texts, or lists of messages.
        max_new_tokens: The most tokens of such an answer.
        generation: More arguments of transformers' ``generate`` for them; greedy by default.

    Raises:
        DataError: If there is no such model or a value is out of its range; at :meth:`setup` or the
            first batch, if the tokeniser does not fit the embedding, sequences are longer than the
            model reads, or no token is learned; at the start of a fit with packing, if packed
            examples see each other in this model.
        MissingExtraError: If transformers is not installed.

    >>> import lightning_peft as lp
    >>> module = lp.CausalLM("byte_llama", pretrained=False, lr=2e-4)
    """

    kind: ClassVar[str] = "language"

    def __init__(
        self,
        backbone: str | nn.Module,
        *,
        pretrained: bool = True,
        dtype: str = "float32",
        backbone_kwargs: Mapping[str, Any] | None = None,
        tokenizer: Any = None,
        lr: float = 2e-4,
        weight_decay: float = 0.01,
        head_lr: float | None = None,
        head_weight_decay: float | None = None,
        adapter_weight_decay: float | None = None,
        lora_plus: float | None = None,
        layer_decay: float | None = None,
        optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None = None,
        samples: int | Sequence[Any] = 3,
        max_new_tokens: int = 64,
        generation: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        # Hydra passes its own container types, which must not end up in a checkpoint
        backbone_kwargs, generation = plain(backbone_kwargs or {}), plain(generation or {})
        samples = samples if isinstance(samples, int) else plain(samples)
        ignored = [] if isinstance(backbone, str) else ["backbone"]
        ignored += [] if tokenizer is None or isinstance(tokenizer, str) else ["tokenizer"]
        self.save_hyperparameters(ignore=[*ignored, "optimizer"])
        wrong = []
        if isinstance(samples, int) and samples < 0:
            wrong.append(f"samples of 0 or more, got {samples}")
        if isinstance(samples, str):
            wrong.append(f"samples as a number or a list of prompts, got {samples!r}")
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
        self.samples: int | Sequence[Any] = samples
        self.max_new_tokens = max_new_tokens
        self.generation: Mapping[str, Any] = generation
        self.latest: list[Sample] = []
        """The samples of the last validation."""
        self._tokens: TokenLoss | None = None
        # Lightning's own mean over processes rounds the number of tokens
        self.val_loss, self.test_loss = MeanMetric(), MeanMetric()
        self.val_perplexity = Perplexity(ignore_index=IGNORED)
        self.test_perplexity = Perplexity(ignore_index=IGNORED)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        self._check_batch(batch, "train")
        in_parts = self._in_parts()(batch)
        loss: Tensor = self._called(batch).loss if in_parts is None else in_parts
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["input_ids"]))
        return loss * self._share(batch["labels"])

    def on_validation_epoch_start(self) -> None:
        """Reset the state of an interrupted validation."""
        begin_anew(self.val_loss)
        begin_anew(self.val_perplexity)

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Add a batch to the validation metrics."""
        self._evaluate(batch, "val", self.val_loss, self.val_perplexity)

    def on_validation_epoch_end(self) -> None:
        """Log loss and perplexity over all batches and ranks, and answer the prompts."""
        self._log("val", self.val_loss, self.val_perplexity)
        if not self.trainer.sanity_checking:
            self._answer()

    def on_test_epoch_start(self) -> None:
        """Reset the state of an earlier test."""
        begin_anew(self.test_loss)
        begin_anew(self.test_perplexity)

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Add a batch to the test metrics."""
        self._evaluate(batch, "test", self.test_loss, self.test_perplexity)

    def on_test_epoch_end(self) -> None:
        """Log loss and perplexity over all batches and ranks."""
        self._log("test", self.test_loss, self.test_perplexity)

    def _evaluate(
        self, batch: Mapping[str, Tensor], stage: str, mean: MeanMetric, metric: Perplexity
    ) -> None:
        self._check_batch(batch, stage)
        labels = batch["labels"][:, 1:]
        tokens = int((labels != IGNORED).sum())
        if not tokens:
            return
        slices = self._in_parts().slices(batch)
        if slices is None:
            found = self._called(batch)
            loss = found.loss
            # an adapter may put prompts in front of the tokens
            metric.update(found.logits[:, -labels.shape[1] - 1 : -1].float(), labels)
        else:
            loss = labels.new_zeros((), dtype=torch.float32)
            for logits, wanted in slices:
                loss += F.cross_entropy(logits, wanted, reduction="sum") / tokens
                metric.update(logits[None], wanted[None])
        # weighed by tokens, so that the mean does not depend on the batches
        mean.update(loss.detach().float(), weight=tokens)

    def _share(self, labels: Tensor) -> Tensor | float:
        """Return the tokens of this process in relation to the mean over all processes.

        With it the gradient, a mean over the processes, is that of the mean over all their tokens.
        """
        if self.trainer.world_size == 1:
            return 1.0
        own = (labels[:, 1:] != IGNORED).sum().float()
        return own / self.trainer.strategy.reduce(own.clone(), reduce_op="mean")

    def _in_parts(self) -> TokenLoss:
        if self._tokens is None or self._tokens.model is not self.backbone:
            self._tokens = TokenLoss(self.backbone)
        return self._tokens

    def _log(self, stage: str, mean: MeanMetric, metric: Perplexity) -> None:
        for name, measured in (("loss", mean), ("perplexity", metric)):
            self.log(f"{stage}/{name}", measured.compute(), prog_bar=True, sync_dist=True)
            measured.reset()

    def _answer(self) -> None:
        """Generate after the prompts, and log what came."""
        if not (self.trainer.is_global_zero or is_sharded(self.backbone)):
            return  # the first process writes; of a sharded model each has a part
        pairs = self._prompts()
        if not pairs:
            return
        writer = Generator(self.backbone, self.tokenizer)
        limit = length_limit(self.backbone)
        if limit is not None:
            room = limit - self.max_new_tokens
            kept = [p for p in pairs if len(writer.encoder.prompt_ids(p[0])) <= room]
            if len(kept) < len(pairs):
                log.warning(
                    "%d of %d prompts are not answered after validation: with max_new_tokens=%d "
                    "they are longer than the %d tokens of the model",
                    len(pairs) - len(kept), len(pairs), self.max_new_tokens, limit,
                )  # fmt: skip
            pairs = kept
        texts = writer(
            [prompt for prompt, _ in pairs],
            max_new_tokens=self.max_new_tokens,
            batch_size=len(pairs) or 1,
            **self.generation,
        )
        self.latest = [
            Sample(prompt, text, answer)
            for (prompt, answer), text in zip(pairs, texts, strict=True)
        ]
        if self.trainer.is_global_zero:
            log_samples(self.trainer.loggers, self.latest, self.trainer.global_step)

    def _prompts(self) -> list[tuple[Any, str]]:
        if not isinstance(self.samples, int):
            return [(prompt, "") for prompt in self.samples]
        find = getattr(getattr(self.trainer, "datamodule", None), "prompts", None)
        return [] if find is None or not self.samples else list(find("val", self.samples))
