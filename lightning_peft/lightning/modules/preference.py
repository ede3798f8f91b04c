"""Learning from pairs of answers: DPO, with the model without its adapter as the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_peft.adaptation.handle import Adaptation, find_adaptations
from lightning_peft.anatomy.forward import in_evaluation_mode
from lightning_peft.data.chat_rows import IGNORED
from lightning_peft.errors import DataError, MethodError
from lightning_peft.lightning.modules.base import group_settings
from lightning_peft.lightning.modules.build import plain
from lightning_peft.lightning.modules.language import LanguageModule

__all__ = ["PreferenceModule", "answer_log_probabilities", "dpo_loss"]


def answer_log_probabilities(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the log probability of the learned tokens of each row.

    Args:
        logits: ``(B, T, V)``.
        labels: ``(B, T)``, not shifted, -100 where nothing is learned.

    Returns:
        Sums over the tokens, ``(B,)``, in float32.
    """
    found = F.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), labels[:, 1:],
        ignore_index=IGNORED, reduction="none",
    )  # fmt: skip
    return -found.sum(dim=1)


def dpo_loss(
    policy: Tensor, reference: Tensor, beta: float, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    r"""Return the DPO loss of pairs, and how far each prefers the better answer.

    With :math:`m = \beta\,[(\log\pi_w - \log\pi_l) - (\log\pi^{ref}_w - \log\pi^{ref}_l)]` the loss
    is :math:`-(1-\epsilon)\log\sigma(m) - \epsilon\log\sigma(-m)`: Rafailov et al., "Direct
    Preference Optimization", 2023 (https://arxiv.org/abs/2305.18290); :math:`\epsilon > 0` is
    "conservative DPO" of Mitchell, 2023.

    Args:
        policy: Log probabilities of the answers ``(2 B,)``, the better ones first.
        reference: The same by the reference.
        beta: How strongly the policy is held to the reference.
        smoothing: The part of the pairs whose order is taken to be wrong, in [0, 0.5).

    Returns:
        The mean loss, and the margins :math:`m` ``(B,)``.
    """
    better, worse = (policy - reference).chunk(2)
    margin = beta * (better - worse)
    loss = -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)
    return loss.mean(), margin.detach()


class PreferenceModule(LanguageModule):
    """Trains the adapter of a causal language model on pairs of answers (DPO).

    The policy is the model with its adapter, and the reference the same model with the adapter
    switched off, so that no second model is in memory. The reference is run in evaluation mode and
    without gradients. A batch is a mapping of tensors ``(2 B, T)`` in which the better answers are
    the first half of the rows, as from :class:`~lightning_peft.ChatDataModule` with the keys
    ``prompt``, ``chosen`` and ``rejected``; only the answers have labels.

    | logged for each stage | |
    |---|---|
    | ``loss`` | :func:`dpo_loss` |
    | ``accuracy`` | part of the pairs in which the better answer gained more than the worse one |
    | ``margin`` | the mean of how much more, times beta |

    Args:
        backbone: As for :class:`~lightning_peft.CausalLM`.
        pretrained: As for :class:`~lightning_peft.CausalLM`.
        dtype: As for :class:`~lightning_peft.CausalLM`.
        backbone_kwargs: As for :class:`~lightning_peft.CausalLM`.
        tokenizer: As for :class:`~lightning_peft.CausalLM`.
        beta: How strongly the policy is held to the reference.
        label_smoothing: The part of the pairs whose order is taken to be wrong, in [0, 0.5).
        lr: Learning rate.
        weight_decay: Weight decay of the parameters that decay (see :func:`parameter_groups`).
        adapter_weight_decay: A separate weight decay for adapters.
        lora_plus: How many times as fast as A the factor B of low-rank updates learns (LoRA+).
        layer_decay: Factor of the learning rate from each block to the one before it; None is 1.
        optimizer: Called with the parameter groups; AdamW by default. It is not among the
            hyperparameters of a checkpoint.

    Raises:
        DataError: As for :class:`~lightning_peft.CausalLM`, and at the first batch, if it has no
            pairs.
        MethodError: At the start of a fit, if the model has no adapter, or one that cannot be
            switched off.
        MissingExtraError: If transformers is not installed.

    >>> import lightning_peft as lp
    >>> module = lp.PreferenceModule("byte_llama", pretrained=False, beta=0.1)
    """

    kind: ClassVar[str] = "preference"

    def __init__(
        self,
        backbone: str | nn.Module,
        *,
        pretrained: bool = True,
        dtype: str = "float32",
        backbone_kwargs: Mapping[str, Any] | None = None,
        tokenizer: Any = None,
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        lr: float = 5e-5,
        weight_decay: float = 0.0,
        adapter_weight_decay: float | None = None,
        lora_plus: float | None = None,
        layer_decay: float | None = None,
        optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None = None,
    ) -> None:
        super().__init__()
        backbone_kwargs = plain(backbone_kwargs or {})
        ignored = [] if isinstance(backbone, str) else ["backbone"]
        ignored += [] if tokenizer is None or isinstance(tokenizer, str) else ["tokenizer"]
        self.save_hyperparameters(ignore=[*ignored, "optimizer"])
        wrong = [] if beta > 0 else [f"beta above 0, got {beta!r}"]
        if not 0 <= label_smoothing < 0.5:
            wrong.append(f"label_smoothing in [0, 0.5), got {label_smoothing!r}")
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
        self.beta = beta
        self.label_smoothing = label_smoothing

    def on_fit_start(self) -> None:
        """Check that the reference can be had from the model itself."""
        super().on_fit_start()
        with self._adaptation().disabled():
            pass

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch of pairs."""
        return self._step(batch, "train")

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Log the metrics of a batch of the validation pairs."""
        self._step(batch, "val")

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Log the metrics of a batch of the test pairs."""
        self._step(batch, "test")

    def _step(self, batch: Mapping[str, Tensor], stage: str) -> Tensor:
        self._check_batch(batch, stage)
        given = {name: value for name, value in batch.items() if name != "labels"}
        labels = batch["labels"]
        # the reference first: a method may swap weights in place to switch itself off
        with torch.no_grad(), self._adaptation().disabled(), in_evaluation_mode(self.backbone):
            reference = answer_log_probabilities(self._logits(given), labels)
        policy = answer_log_probabilities(self._logits(given), labels)
        loss, margin = dpo_loss(policy, reference, self.beta, self.label_smoothing)
        found = {"loss": loss, "accuracy": (margin > 0).float().mean(), "margin": margin.mean()}
        self.log_dict(
            {f"{stage}/{name}": value for name, value in found.items()},
            prog_bar=True,
            batch_size=len(margin),
            sync_dist=stage != "train",
        )
        return loss

    def _check_batch(self, batch: Any, stage: str) -> None:
        first = stage not in self._checked
        super()._check_batch(batch, stage)
        rows = len(batch["input_ids"])
        if first and (rows % 2 or "position_ids" in batch):
            raise DataError(
                f"Expected a batch ({stage}) of pairs, the better answers in the first half of the "
                f"rows, got {rows} rows{' that are packed' if 'position_ids' in batch else ''}. "
                "ChatDataModule makes them of the keys prompt, chosen and rejected."
            )

    def _adaptation(self) -> Adaptation:
        found = list(find_adaptations(self).values())
        if len(found) != 1:
            raise MethodError(
                f"PreferenceModule: expected a model with one adapter, whose reference is the "
                f"model without it, got {len(found) or 'none'}. Train it with "
                'callbacks=[lp.PEFT("lora")].'
            )
        return found[0]
