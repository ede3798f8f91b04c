"""Candidates for a ranking: names, patterns on names, files of weights, random weights."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_peft.backbones._register import register
from lightning_peft.backbones.data_config import check_timm_name
from lightning_peft.errors import DataError
from lightning_peft.system.randomness import seeded

__all__ = ["Candidate", "build", "count_parameters", "find_candidates", "most_likely_reason"]

RANDOM = "random"
SOURCES = ("hf-hub:", "hf_hub:", "local-dir:")
"""Prefixes with which timm marks names of other sources; the rest is part of the name."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A backbone to rank.

    Attributes:
        name: As for ``timm.create_model``.
        weights: ``"pretrained"``, ``"random"``, or a file of weights.
    """

    name: str
    weights: str = "pretrained"

    @classmethod
    def parse(cls, text: str) -> Candidate:
        """Parse ``NAME``, ``NAME:random`` or ``NAME:FILE``.

        >>> Candidate.parse("resnet18:random"), Candidate.parse("hf-hub:timm/resnet18")
        (Candidate(resnet18:random), Candidate(hf-hub:timm/resnet18))
        """
        if text.startswith(SOURCES):
            return cls(text)
        name, _, weights = text.partition(":")
        return cls(name, weights or "pretrained")

    @property
    def label(self) -> str:
        """The candidate's name in tables, as it is typed."""
        return self.name if self.weights == "pretrained" else f"{self.name}:{self.weights}"

    @property
    def file(self) -> Path | None:
        """The file of weights, or None."""
        return None if self.weights in ("pretrained", RANDOM) else Path(self.weights)

    def __repr__(self) -> str:
        return f"Candidate({self.label})"


def find_candidates(texts: Sequence[str]) -> list[Candidate]:
    """Resolve names and patterns to candidates.

    Args:
        texts: Names of timm, ``NAME:random``, ``NAME:FILE``, and patterns such as ``vit_tiny*``,
            which select every pretrained model of timm whose name matches.

    Returns:
        The candidates in the order of ``texts``, each once.

    Raises:
        DataError: If there is nothing to compare; a name is unknown, a pattern matches no name or
            a file does not exist; all problems are listed.
    """
    found: dict[Candidate, None] = {}
    problems: list[str] = []
    for text in texts:
        candidate = Candidate.parse(text.strip())
        if _is_pattern(candidate.name):
            matches = _matching(candidate)
            if not matches:
                problems.append(f"no pretrained model of timm matches '{text}'.")
            found.update(dict.fromkeys(matches))
            continue
        try:
            check_timm_name(candidate.name)
        except (DataError, ValueError) as error:
            problems.append(str(error))
        if candidate.file is not None and not candidate.file.is_file():
            problems.append(
                f"expected a file of weights at {candidate.file}, got none. "
                f"After a colon, write a file or '{RANDOM}'."
            )
        found[candidate] = None
    if not found and not problems:
        problems.append("expected one or more models, got none.")
    if problems:
        raise DataError("\n".join(problems))
    return list(found)


@functools.cache
def count_parameters(name: str) -> int:
    """Count the parameters of a backbone without its head; no memory is taken.

    Args:
        name: As for ``timm.create_model``.

    Returns:
        The number of parameters.
    """
    import timm

    register()
    with torch.device("meta"):
        model: nn.Module = timm.create_model(name, num_classes=0)
    return sum(parameter.numel() for parameter in model.parameters())


def build(candidate: Candidate, *, weights: bool = True, seed: int = 0) -> nn.Module:
    """Build a candidate without its head, frozen and in evaluation mode.

    Args:
        candidate: The candidate.
        weights: Load its weights; otherwise they are random, which is enough for timing.
        seed: Seed of random weights.

    Returns:
        A module that maps images ``(B, C, H, W)`` to features ``(B, D)``.

    Raises:
        DataError: If a file of weights is not this model's.
        Exception: Any error of timm if weights cannot be downloaded.
    """
    import timm

    register()
    pretrained = weights and candidate.weights == "pretrained"
    with seeded("rank", seed, candidate.name):
        model: nn.Module = timm.create_model(candidate.name, pretrained=pretrained, num_classes=0)
    if weights and candidate.file is not None:
        _load(model, candidate.file, candidate.name)
    return model.requires_grad_(False).eval()


def most_likely_reason(error: BaseException) -> str:
    """Return one line that says why a candidate could not be built."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, DataError):
        return first
    names = {cls.__name__ for cls in type(error).__mro__}
    if names & {"LocalEntryNotFoundError", "ConnectionError", "URLError", "OfflineModeIsEnabled"}:
        return "its weights are not on this machine and could not be downloaded"
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _load(model: nn.Module, path: Path, name: str) -> None:
    """Load a file of weights, with or without a head; everything else has to fit."""
    from timm.models import load_state_dict

    try:
        state: dict[str, Tensor] = load_state_dict(str(path), weights_only=True)
    except Exception as error:
        raise DataError(
            f"Expected a file of weights at {path}, got {type(error).__name__}: "
            f"{' '.join(str(error).split())}"
        ) from error
    own = model.state_dict()
    heads = _head_names(model)
    missing = [key for key in own if key not in state]
    unknown = [key for key in state if key not in own and not key.startswith(heads)]
    shapes = [
        f"{key} {tuple(state[key].shape)} in place of {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    wrong = [
        f"{title} {', '.join(keys[:3])}" + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
        for title, keys in (("without", missing), ("with", unknown), ("with", shapes))
        if keys
    ]
    if wrong:
        raise DataError(f"Expected the weights of {name} in {path}, got {'; '.join(wrong)}.")
    model.load_state_dict({key: state[key] for key in own})


def _head_names(model: nn.Module) -> tuple[str, ...]:
    config: Any = getattr(model, "pretrained_cfg", {})
    names = config.get("classifier") or ()
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))


def _is_pattern(name: str) -> bool:
    return any(sign in name for sign in "*?[")


def _matching(candidate: Candidate) -> list[Candidate]:
    import timm

    register()
    names = timm.list_models(pretrained=candidate.weights != RANDOM)
    pattern = candidate.name
    # without a dot, the pattern is for the architecture, with all its pretrained weights
    key = (lambda name: name) if "." in pattern else (lambda name: name.partition(".")[0])
    return [
        Candidate(name, candidate.weights) for name in names if fnmatch.fnmatch(key(name), pattern)
    ]
