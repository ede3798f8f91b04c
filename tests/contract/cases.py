"""Which (method, backbone) pairs the contract suite runs on, found from the registries.

A pair either passes every promise or is refused for a reason that stands here; none is skipped.
"""

from __future__ import annotations

from dataclasses import dataclass

import lightning_peft as lp
from lightning_peft.methods import list_tuners
from lightning_peft.methods.base import Method
from tests.zoo import ZOO

# what a method cannot do without, or a size that fits the tiny models
SETTINGS: dict[str, dict] = {
    "lora": {"rank": 2},
    "dora": {"rank": 2},
    "union": {"methods": (lp.LoRA(rank=2, targets="auto"), lp.BitFit())},
}
TUNER_SETTINGS: dict[str, dict] = {
    "ADALORA": {"total_step": 10},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 16},
    "MISS": {"r": 4},
    "OFT": {"oft_block_size": 4, "r": 0},
}

BACKBONES = tuple(ZOO)
TUNER_BACKBONE = "vit"  # every tuner of peft on one backbone; every method of ours on all


@dataclass(frozen=True)
class Case:
    """One method on one backbone."""

    backbone: str
    method: Method
    label: str

    def __str__(self) -> str:
        return f"{self.label}-{self.backbone}"


def _own() -> list[Case]:
    return [
        Case(backbone, lp.create_method(name, **SETTINGS.get(name, {})), name)
        for name in lp.list_methods()
        if name != "hf"
        for backbone in BACKBONES
    ]


def _tuners() -> list[Case]:
    return [
        Case(TUNER_BACKBONE, lp.HF(name, **TUNER_SETTINGS.get(name, {})), f"hf:{name.lower()}")
        for name, reason in list_tuners().items()
        if reason is None
    ]


CASES = _own() + _tuners()

BYPASS = "never calls"
# (method, backbone) -> what the refusal says
REFUSED: dict[tuple[str, str], str] = {}
