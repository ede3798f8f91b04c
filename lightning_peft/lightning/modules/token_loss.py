"""The cross entropy of next tokens over a large vocabulary, without all logits at once.

The logits of a batch in float32, their softmax and its gradient are often larger than everything
else that a step of LoRA keeps: 4,096 tokens of a vocabulary of 128,000 take 2 GB, three times. Here
the layer in front of the vocabulary is called on some tokens at a time, and again in the backward
pass; tokens without a label are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_peft.adaptation.sharding import is_sharded
from lightning_peft.data.chat_rows import IGNORED

__all__ = ["TokenLoss"]

MOST = 2**24
"""The most logits at once: 64 MB in float32."""


class TokenLoss:
    """The loss of a causal language model, some tokens at a time.

    Args:
        model: A model of transformers with its head.
        most: The most logits at once; 2^24 by default.
    """

    def __init__(self, model: nn.Module, most: int | None = None) -> None:
        self.model = model
        self.most = MOST if most is None else most
        self._serves: bool | None = None

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """Return the mean cross entropy (nats) over the labels of a batch.

        Args:
            batch: Tensors ``(B, T)`` for the model, and ``labels``, not shifted, -100 where nothing
                is learned.

        Returns:
            The loss, as the model's own is; ``None`` if all logits fit at once, or if the model
            does more to them than its last layer (a cap, a scale, a loss of its experts).
        """
        found = self._hidden(batch)
        if found is None:
            return None
        hidden, labels = found
        parts = [
            checkpoint(self._sum, h, t, use_reentrant=False) if h.requires_grad else self._sum(h, t)
            for h, t in zip(hidden, labels, strict=True)
        ]
        return torch.stack(parts).sum() / sum(map(len, labels))

    def slices(self, batch: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]] | None:
        """Return logits ``(n, V)`` in float32 with their labels ``(n,)``, some tokens at a time.

        Args:
            batch: As for a call.

        Returns:
            The slices, or ``None`` as for a call.
        """
        found = self._hidden(batch)
        if found is None:
            return None
        return ((self._head(h).float(), t) for h, t in zip(*found, strict=True))

    def _hidden(self, batch: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]] | None:
        """Return what the last layer is called with where there are labels, in parts."""
        head = self._head
        size = getattr(head, "out_features", None)
        labels = batch["labels"][:, 1:]
        if self._serves is False or size is None or labels.numel() * size <= self.most:
            return None
        if getattr(getattr(self.model, "config", None), "output_router_logits", False):
            return None  # its loss has a term for the balance of the experts
        if is_sharded(self.model):  # its last layer is whole only within its own forward
            return None
        taken: list[Tensor] = []

        def take(_: nn.Module, given: tuple[Any, ...]) -> tuple[Tensor]:
            taken.append(given[0])
            return (given[0][:, -1:],)

        handle = head.register_forward_pre_hook(take)
        try:
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            last = self.model(**inputs, use_cache=False).logits
        finally:
            handle.remove()
        if self._serves is None:
            with torch.no_grad():
                self._serves = len(taken) == 1 and torch.equal(head(taken[0][:, -1:]), last)
            if not self._serves:
                return None
        learned = labels != IGNORED
        # an adapter may put prompts in front of the tokens
        hidden, wanted = taken[0][:, -labels.shape[1] - 1 : -1][learned], labels[learned]
        count = max(1, self.most // size)
        return list(hidden.split(count)), list(wanted.split(count))

    def _sum(self, hidden: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self._head(hidden).float(), labels, reduction="sum")

    @property
    def _head(self) -> Any:
        get = getattr(self.model, "get_output_embeddings", None)
        return None if get is None else get()
