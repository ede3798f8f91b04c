"""The sources of backbones for images and for texts, and the measurement of a candidate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import nn

from lightning_peft.ranking.candidates import (
    Candidate,
    build,
    count_parameters,
    most_likely_reason,
)
from lightning_peft.ranking.encoders import build_encoder, count_encoder_parameters
from lightning_peft.ranking.features import Features, extract, milliseconds_each

__all__ = ["BACKBONES_OF", "Budgets", "Noun", "Skipped", "Source"]

Noun = Literal["images", "texts"]

Budgets = tuple[float | None, float | None]
"""The largest number of parameters, and of milliseconds for an image or text."""


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A candidate that was left out, with the reason."""

    label: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Source:
    """A source of backbones for one kind of input.

    Attributes:
        each: The phrase for one input, such as ``"an image"``.
        count: Returns the number of parameters of a backbone, by its name.
        build: Builds a candidate, frozen; see :func:`build`.
    """

    each: str
    count: Callable[[str], int]
    build: Callable[..., nn.Module]

    def measure(
        self,
        candidate: Candidate,
        batches_for: Callable[[Candidate], Iterable[Any]],
        budgets: Budgets,
        seed: int,
        device: torch.device | str,
    ) -> tuple[Features, int, float] | Skipped:
        """Return a candidate's features, parameters and time for an input, or why it is skipped."""
        most_parameters, most_milliseconds = budgets
        parameters = self.count(candidate.name)
        if most_parameters is not None and parameters > most_parameters:
            return Skipped(candidate.label, f"it has {parameters:,} parameters")
        batches = batches_for(candidate)
        inputs = next(iter(batches))[0]
        if most_milliseconds is not None:
            taken = milliseconds_each(self.build(candidate, weights=False), inputs, device)
            if taken > most_milliseconds:
                return Skipped(candidate.label, f"it takes {taken:.2f} ms {self.each}")
        try:
            model = self.build(candidate, seed=seed)
        except Exception as error:
            # a download can fail in many ways: the others are still ranked
            return Skipped(candidate.label, most_likely_reason(error))
        taken = milliseconds_each(model, inputs, device)
        return extract(model, batches, device), parameters, taken


BACKBONES_OF: dict[Noun, Source] = {
    "images": Source("an image", count_parameters, build),
    "texts": Source("a text", count_encoder_parameters, build_encoder),
}
