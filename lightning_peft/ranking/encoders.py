"""Encoders of texts as candidates: names of Hugging Face, directories, random weights."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_peft.backbones.hugging_face import load_config, load_encoder
from lightning_peft.errors import DataError
from lightning_peft.randomness import seeded
from lightning_peft.ranking.candidates import RANDOM, Candidate

__all__ = ["MeanOfTokens", "build_encoder", "count_encoder_parameters", "find_encoders"]


class MeanOfTokens(nn.Module):
    """An encoder whose features are the mean of its last hidden states over the tokens of a text.

    Reimers and Gurevych, "Sentence-BERT", 2019 (https://arxiv.org/abs/1908.10084), find the mean to
    be worth more than the state of the first token where the encoder is not trained further.

    Args:
        encoder: A model of transformers, without a head.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Features ``(B, D)`` of what a tokeniser gives, tensors ``(B, T)``."""
        states: Tensor = self.encoder(**inputs).last_hidden_state
        mask = inputs["attention_mask"].to(states.dtype).unsqueeze(-1)
        return (states * mask).sum(1) / mask.sum(1).clamp(min=1)


def find_encoders(texts: Sequence[str]) -> list[Candidate]:
    """Resolve what was typed to candidates.

    Args:
        texts: Names on the Hugging Face hub or local directories, ``NAME:random`` for one with
            random weights.

    Returns:
        The candidates in the order in which they were named, each once.

    Raises:
        DataError: If there is nothing to compare, or a name is of no model: all that is wrong is
            named.
        MissingExtraError: If transformers is not installed.
    """
    found: dict[Candidate, None] = {}
    problems: list[str] = []
    for text in texts:
        name, colon, weights = text.strip().rpartition(":")
        random = bool(colon) and weights == RANDOM
        candidate = Candidate(name, RANDOM) if random else Candidate(text.strip())
        try:
            load_config(candidate.name, 1, {})
        except DataError as error:
            problems.append(str(error))
        found[candidate] = None
    if not found:
        problems.append("expected one or more models, got none.")
    if problems:
        raise DataError("\n".join(problems))
    return list(found)


@functools.cache
def count_encoder_parameters(name: str) -> int:
    """Count the parameters of an encoder without a head; no memory is taken.

    Args:
        name: A name on the Hugging Face hub, or a local directory.
    """
    with torch.device("meta"):
        model = load_encoder(name, pretrained=False)
    return sum(parameter.numel() for parameter in model.parameters())


def build_encoder(candidate: Candidate, *, weights: bool = True, seed: int = 0) -> nn.Module:
    """Build a candidate, frozen and in evaluation mode.

    Args:
        candidate: The candidate.
        weights: Load its weights; without, it has random ones, as is enough to time it.
        seed: Seed of random weights.

    Returns:
        A module that maps what a tokeniser gives to features ``(B, D)``.

    Raises:
        DataError: If most of the weights are not in its file.
        Exception: Whatever transformers raises where weights cannot be downloaded.
    """
    pretrained = weights and candidate.weights != RANDOM
    # the same random weights wherever the directory lies
    with seeded("rank", seed, Path(candidate.name).name):
        encoder: Any = load_encoder(candidate.name, pretrained=pretrained)
    return MeanOfTokens(encoder).requires_grad_(False).eval()
