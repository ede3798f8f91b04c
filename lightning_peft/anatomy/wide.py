r"""Heads whose first weights are so large that a run begins with losses far above chance.

timm draws a new linear layer of EfficientNet, MobileNet, MNASNet, RexNet, LCNet and others
uniformly within :math:`1 / \sqrt{K}` of zero, as TensorFlow's EfficientNet does for the 1,000
classes of ImageNet (``_init_weight_goog`` of ``timm``). With two classes and 1,280
features the weights are 25 times as large as those of ``nn.Linear``, and the first losses are 5
instead of 0.7; with few labels and steps a run does not recover from them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

__all__ = ["narrowed", "times_linear", "wide_layers"]

OWN = 2.0
"""A new head of ours with weights of more times those of ``nn.Linear`` is drawn again."""

TOLD = 10.0
"""Of anybody's head this is told: that of an EfficientNet-Lite0 of ImageNet has 4 times."""


def times_linear(layer: nn.Module) -> float:
    r"""Return how many times as large the weights of a layer are as ``nn.Linear`` draws them.

    The standard deviation of a weight ``(K, D, ...)`` in units of :math:`1 / \sqrt{3 D}`; 0 for a
    layer without a plain matrix of floats.
    """
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, torch.Tensor) or type(weight) not in (torch.Tensor, nn.Parameter):
        return 0.0  # sharded, or quantised
    if weight.ndim < 2 or weight.is_meta:
        return 0.0
    if not weight.is_floating_point() or weight.numel() < 2:
        return 0.0
    return float(weight.detach().float().std()) * math.sqrt(3 * weight[0].numel())


def wide_layers(model: nn.Module, heads: Iterable[str]) -> dict[str, float]:
    """Return the layers of heads whose weights are told to be large, and how many times.

    Args:
        model: The backbone.
        heads: Names of its heads.
    """
    found = {}
    for head in heads:
        for name, layer in model.get_submodule(head).named_modules(prefix=head):
            if isinstance(layer, nn.Linear | nn.Conv2d) and (times := times_linear(layer)) > TOLD:
                found[name] = times
    return found


def narrowed(model: nn.Module) -> nn.Module:
    """Draw the weights of a new head again where they are large, as ``nn.Linear`` draws them.

    Args:
        model: A model of timm whose head is new.

    Returns:
        The model.
    """
    for layer in _layers(model):
        if times_linear(layer) > OWN:
            layer.reset_parameters()
    return model


def _layers(model: nn.Module) -> Iterator[nn.Linear | nn.Conv2d]:
    found: Any = getattr(model, "get_classifier", lambda: None)()
    for head in found if isinstance(found, list | tuple) else [found]:
        for layer in head.modules() if isinstance(head, nn.Module) else ():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                yield layer
