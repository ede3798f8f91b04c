"""Text encoders as candidates: names of Hugging Face, directories, random weights."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_peft.backbones.hugging_face import load_config, load_encoder
from lightning_peft.errors import DataError
from lightning_peft.ranking.candidates import RANDOM, Candidate
from lightning_peft.system.randomness import seeded

__all__ = ["MeanOfTokens", "build_encoder", "count_encoder_parameters", "find_encoders"]


class MeanOfTokens(nn.Module):
    """An encoder whose features are the mean of its last hidden states over the tokens of a text.

    Reimers and Gurevych, "Sentence-BERT", 2019 (https://arxiv.org/abs/1908.10084), find the mean
    better than the state of the first token if the encoder is not trained further.

    Args:
        encoder: A model of transformers, without a head.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return features ``(B, D)`` for a tokeniser's output, tensors ``(B, T)``."""
        states: Tensor = self.encoder(**inputs).last_hidden_state
        mask = inputs["attention_mask"].to(states.dtype).unsqueeze(-1)
        return (states * mask).sum(1) / mask.sum(1).clamp(min=1)


def find_encoders(texts: Sequence[str]) -> list[Candidate]:
    """Resolve names to candidates.

    Args:
        texts: Names on the Hugging Face hub or local directories, ``NAME:random`` for one with
            random weights.

    Returns:
        The candidates in the order of ``texts``, each once.

    Raises:
        DataError: If there is nothing to compare, or a name is unknown; all problems are listed.
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
        weights: Load its weights; otherwise they are random, which is enough for timing.
        seed: Seed of random weights.

    Returns:
        A module that maps a tokeniser's output to features ``(B, D)``.

    Raises:
        DataError: If most of the weights are missing in its file.
        Exception: Any error of transformers if weights cannot be downloaded.
    """
    pretrained = weights and candidate.weights != RANDOM
    # the same random weights wherever the directory is
    with seeded("rank", seed, Path(candidate.name).name):
        encoder: Any = load_encoder(candidate.name, pretrained=pretrained)
    return MeanOfTokens(encoder).requires_grad_(False).eval()
