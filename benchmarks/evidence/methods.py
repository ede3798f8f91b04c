"""What is compared, and the few settings of each that cross-validation chooses from.

Every method has three settings: the rate of ``conf/method`` as it is, a tenth of it, and a third of
it with one setting of the method's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

__all__ = ["BASELINES", "CORE", "Setting", "settings", "trained_methods"]


@dataclasses.dataclass(frozen=True)
class Setting:
    """One candidate.

    Attributes:
        rate: The peak learning rate; for a baseline its one setting.
        own: The method's own setting in words, or ``""``.
        method: Arguments of the method.
        module: Arguments of the classifier.
        batchnorm: What becomes of the statistics of BatchNorm.
    """

    rate: float
    own: str = ""
    method: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    module: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    batchnorm: Literal["frozen", "held", "train"] = "frozen"

    def __str__(self) -> str:
        return f"{self.rate:.2g}" + (f", {self.own}" if self.own else "")


RANK: dict[str, Any] = {"own": "rank 2", "method": {"rank": 2}}
SMALL: dict[str, Any] = {"own": "width 2", "method": {"bottleneck": 2}}
HEAD: dict[str, Any] = {"own": "head at 0.01", "module": {"head_lr": 1e-2}}
HELD: dict[str, Any] = {"own": "statistics held", "batchnorm": "held"}
DECAY: dict[str, Any] = {"own": "layer decay 0.8", "module": {"layer_decay": 0.8}}

_RATES: dict[str, tuple[float, dict[str, Any]]] = {
    "lora": (3e-3, RANK),
    "full": (1e-3, DECAY),
    "linear_probe": (1e-2, {"own": "decay 0.3", "module": {"head_weight_decay": 0.3}}),
    "norm": (3e-3, HEAD),
    "lp_ft": (1e-3, DECAY),
    "last_blocks": (3e-3, {"own": "2 blocks", "method": {"n": 2}}),
    "dora": (3e-3, RANK),
    "bitfit": (3e-3, HEAD),
    "ia3": (1e-2, HEAD),
    "ssf": (3e-3, HEAD),
    "conv_adapter": (3e-3, {"own": "width 1/16", "method": {"reduction": 16}}),
    "houlsby": (3e-3, SMALL),
    "adapter_plus": (3e-3, SMALL),
    "repadapter": (3e-3, SMALL),
    "lora_qv": (3e-3, RANK),
    "lora_fa": (3e-3, RANK),
    "adalora": (3e-3, {"own": "rank 2", "method": {"rank": 2, "initial_rank": 4}}),
    "hf:loha": (3e-3, {"own": "rank 2", "method": {"r": 2}}),
    "hf:lokr": (3e-3, {"own": "rank 2", "method": {"r": 2}}),
    "scratch": (3e-3, DECAY),
}
"""The rate of each method's file in ``conf/method``, that of full fine-tuning as it was when the
runs began, and what is the method's own."""

_ONLY = {
    "cells": {"conv_adapter", "hf:loha", "hf:lokr"},
    "reviews": {"ia3", "houlsby", "adapter_plus", "repadapter", "lora_qv"},
}

CORE = ("lora", "full", "linear_probe", "norm", "lp_ft", "last_blocks", "dora", "bitfit", "ia3")
"""What is measured first."""

BASELINES = {
    "nearest_neighbours": "neighbours",
    "logistic_regression": "C",
    "bag_of_words": "C",
}
"""Without training, and what their one setting is: scikit-learn's, on the frozen features; the last
on the TF-IDF of words and pairs of words."""


def trained_methods(task: str) -> list[str]:
    """Return the methods that are trained on a task, the core first."""
    other = set().union(*(names for name, names in _ONLY.items() if name != task))
    return [name for name in _RATES if name not in other - _ONLY.get(task, set())]


def settings(method: str, task: str) -> list[Setting]:
    """Return the candidates of a method or a baseline on a task."""
    if method == "nearest_neighbours":
        return [Setting(1), Setting(3), Setting(5)]
    if method in BASELINES:
        return [Setting(0.1), Setting(1), Setting(10)]
    rate, own = _RATES[method]
    if task != "reviews" and method in ("full", "lp_ft", "norm"):  # a network with BatchNorm
        own = HELD
    return [Setting(rate), Setting(rate / 10), Setting(rate / 3, **own)]
