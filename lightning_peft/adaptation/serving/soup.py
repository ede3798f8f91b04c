"""Soups: averaging the weights of several adapters into one.

Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy
without increasing inference time", ICML 2022 (https://arxiv.org/abs/2203.05482). The members share
one pretrained backbone and one method; the trained parameters are averaged.

Averaging the factors of low-rank updates does not average the updates: with two members,
``mean(B) mean(A)`` has a quarter of each member's update and of their cross terms ``B1 A2`` and
``B2 A1``. Members of one run are close to each other, so the difference is small. For members that
started from different random ``A`` the cross terms are meaningless: average their updates instead
(:func:`average_updates`).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_peft.adaptation.handle import Adaptation, find_adaptation
from lightning_peft.adaptation.loading import fitting_state, load_adapter
from lightning_peft.adaptation.serving.low_rank_mean import low_rank_layers, mean_factors
from lightning_peft.errors import CheckpointError, MethodError
from lightning_peft.files.reading import read_adapter
from lightning_peft.methods.finite import all_finite
from lightning_peft.methods.from_peft.start import START

__all__ = ["average_adapters", "average_updates", "greedy_soup", "soup"]

State = Mapping[str, Tensor]


def soup(states: Sequence[State], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Average states entry by entry, uniformly or weighted.

    Sums are computed in float64 and rounded once. An entry of whole numbers, such as the batch
    counter of a BatchNorm, is taken from the first state.

    Args:
        states: Tensors by name, as from :meth:`Adaptation.state_dict`.
        weights: A weight for each state, from 0; they are divided by their sum. Equal by default.

    Returns:
        The average; the states are unchanged.

    Raises:
        CheckpointError: If the states differ in names, shapes or dtypes, or a member has numbers
            that are not finite; all problems are listed.
        MethodError: If there is no state, or the weights are invalid.

    >>> soup([{"w": torch.tensor([1.0])}, {"w": torch.tensor([4.0])}], [2, 1])
    {'w': tensor([2.])}
    """
    shares = _shares(len(states), weights)
    problems = list(_differences(states))
    if problems:
        raise CheckpointError(
            "soup: expected states of one method on one backbone, got: " + "; ".join(problems[:8])
            + (f" and {len(problems) - 8} more" if len(problems) > 8 else "") + "."
        )  # fmt: skip
    averaged = {}
    for name, first in states[0].items():
        if not _has_mean(first):
            averaged[name] = first.detach().clone()
            continue
        wide = torch.complex128 if first.is_complex() else torch.float64
        total = torch.zeros_like(first, dtype=wide)
        for share, state in zip(shares, states, strict=True):
            total += share * state[name].detach().to(total.device, wide)
        averaged[name] = total.to(first.dtype)
    return averaged


def average_updates(
    adaptation: Adaptation, states: Sequence[State], weights: Sequence[float] | None = None
) -> tuple[dict[str, Tensor], float]:
    """Average the updates of LoRA (``B A``, not ``B`` and ``A``), back at the adapter's rank.

    The average of updates of rank ``r`` has a rank of up to ``r`` times their number. Here it is
    the nearest matrix of rank ``r`` (Eckart and Young, 1936), from a singular value decomposition
    of the small matrix between the factors; the update itself is never formed. All other tensors,
    such as the head, are averaged as in :func:`soup`.

    Args:
        adaptation: The adapted backbone, for its layers; unchanged.
        states: As for :func:`soup`.
        weights: As for :func:`soup`.

    Returns:
        The state, and the share of the average update that its rank cannot hold: the norm of the
        rest divided by the norm of the whole, over all layers.

    Raises:
        MethodError: If the method is not LoRA on linear layers or ungrouped convolutions.
        CheckpointError: As for :func:`soup`.

    >>> import torch
    >>> from torch import nn
    >>> import lightning_peft as lp
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> adaptation = lp.adapt(net, "lora", rank=2)
    >>> state = {name: tensor.clone() for name, tensor in adaptation.state_dict().items()}
    >>> average, loss = lp.average_updates(adaptation, [state, state])
    >>> average.keys() == state.keys(), loss
    (True, 0.0)
    """
    layers = low_rank_layers(adaptation)
    averaged = soup(states, weights)
    shares = _shares(len(states), weights)
    lost = whole = 0.0
    for name_a, name_b in layers:
        first, second, left_out, norm = mean_factors(
            [state[name_a] for state in states], [state[name_b] for state in states], shares
        )
        averaged[name_a], averaged[name_b] = first, second
        lost, whole = lost + left_out**2, whole + norm**2
    return averaged, (lost / whole) ** 0.5 if whole else 0.0


def greedy_soup(
    states: Sequence[State],
    scores: Sequence[float],
    score: Callable[[Sequence[int]], float],
) -> tuple[list[int], float]:
    """Add candidates one by one, the best first; keep those that do not lower the soup's score.

    Algorithm 1 of Wortsman et al. Use a validation score; the test set must not choose members. A
    candidate that diverged, whose score is not finite, is no member.

    Args:
        states: The candidates; only their number is used.
        scores: The validation score of each candidate alone; higher is better.
        score: Returns the validation score of the soup of some members (indices into ``states``).

    Returns:
        The members in the order in which they were added, and the score of their soup.

    Raises:
        MethodError: If there is no candidate, not exactly one score for each, or none is finite.

    >>> import lightning_peft as lp
    >>> validated = {(1,): 0.90, (1, 0): 0.91, (1, 0, 2): 0.89}
    >>> lp.greedy_soup([{}, {}, {}], [0.8, 0.9, 0.7], lambda members: validated[tuple(members)])
    ([1, 0], 0.91)
    """
    if not states or len(states) != len(scores):
        raise MethodError(
            f"greedy_soup: expected candidates and a score for each, got {len(states)} and "
            f"{len(scores)} scores."
        )
    sound = [i for i, own in enumerate(scores) if math.isfinite(own)]
    if not sound:
        raise MethodError(
            f"greedy_soup: expected a candidate whose score is finite, got {list(scores)}: all of "
            "them diverged. Choose by another score."
        )
    order = sorted(sound, key=lambda i: -scores[i])
    members, best = [order[0]], scores[order[0]]
    for candidate in order[1:]:
        found = score([*members, candidate])
        if math.isfinite(found) and found >= best:
            members, best = [*members, candidate], found
    return members, best


def average_adapters(
    model: nn.Module,
    directories: Sequence[str | PathLike[str]],
    weights: Sequence[float] | None = None,
    *,
    of: Literal["parameters", "updates"] = "parameters",
) -> Adaptation:
    """Load the average of several adapter directories into a backbone.

    Args:
        model: The backbone that they were trained on; as for :func:`load_adapter`.
        directories: The adapter directories.
        weights: A weight for each; equal by default.
        of: ``"parameters"`` averages the stored tensors; ``"updates"`` averages LoRA's updates, see
            :func:`average_updates`.

    Returns:
        The adaptation, which holds the average.

    Raises:
        MethodError: If they were made with different methods, or there are none, or the model's
            adapter is merged or in another state in which this is refused.
        BackboneMismatchError: If one of them was trained on another backbone.
        AdapterFileError: As for :func:`load_adapter`.

    >>> import copy, tempfile
    >>> from torch import nn
    >>> import lightning_peft as lp
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     for name in "ab":
    ...         lp.adapt(copy.deepcopy(net), "lora", rank=2).save(f"{directory}/{name}")
    ...     adaptation = lp.average_adapters(net, [f"{directory}/a", f"{directory}/b"])
    ...
    >>> adaptation.method.rank
    2
    """
    _shares(len(directories), weights)
    standing = find_adaptation(model)
    if standing is not None:
        standing.state.ask("average_adapters()")
    if of not in ("parameters", "updates"):
        raise MethodError(f"expected of to be 'parameters' or 'updates', got {of!r}.")
    stored = [read_adapter(directory) for directory in directories]
    other = [s for s in stored if s.about["method"] != stored[0].about["method"]]
    if other:
        told = "; ".join(f"{s.path} with {s.about['method']}" for s in [stored[0], *other])
        raise MethodError(f"expected adapters of one method and its settings, got {told}.")
    load_adapter(model, directories[0])
    adaptation = find_adaptation(model)
    assert adaptation is not None
    states = [fitting_state(adaptation, s, strict_backbone=True) for s in stored]
    averaged = (
        average_updates(adaptation, states, weights)[0]
        if of == "updates"
        else soup(states, weights)
    )
    adaptation.load_state_dict(averaged)
    return adaptation


def _shares(count: int, weights: Sequence[float] | None) -> list[float]:
    if count == 0:
        raise MethodError("soup: expected at least one member, got none.")
    if weights is None:
        return [1 / count] * count
    given = list(weights)
    fine = all(isinstance(w, int | float) and 0 <= w <= sys.float_info.max for w in given)
    if len(given) != count or not fine or not any(given):
        raise MethodError(
            f"soup: expected {count} weights from 0, one for each member and not all 0, got {given}"
        )
    largest = max(given)  # first, since their sum may overflow
    parts = [weight / largest for weight in given]
    return [part / sum(parts) for part in parts]


def _has_mean(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _differences(states: Sequence[State]) -> Iterable[str]:
    first = states[0]
    for number, state in enumerate(states[1:], 2):
        for name in sorted(first.keys() ^ state.keys()):
            yield f"'{name}' is only in member {1 if name in first else number}"
        for name in sorted(first.keys() & state.keys()):
            one, two = first[name], state[name]
            if one.shape != two.shape or one.dtype != two.dtype:
                yield (
                    f"'{name}' is {tuple(one.shape)} {one.dtype} in member 1 and "
                    f"{tuple(two.shape)} {two.dtype} in member {number}"
                )
            elif f".{START}." in name and not torch.equal(one, two.to(one.device)):
                yield (
                    f"'{name}', which the initialisation took out of the weight, is not the same "
                    f"in members 1 and {number}: their A and B are updates of different weights"
                )
    for number, state in enumerate(states, 1):
        for name in sorted(state):
            if _has_mean(state[name]) and not all_finite(state[name]):
                yield f"'{name}' is not finite in member {number}, which diverged: leave it out"
