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
    "ROAD": {"group_size": 16},
    "SHIRA": {"r": 4},
    "WAVEFT": {"n_frequency": 100},
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

BYPASSED = ("beit", "eva", "swinv2", "tv_swin")
WITHOUT_ATTENTION = ("convnext", "efficientnet", "mixer", "resnet", "tv_resnet", "mlp")

# (method, backbone) -> what the refusal says
REFUSED: dict[tuple[str, str], str] = {
    **{
        (method, backbone): "expected modules that the forward calls"
        for method in ("lora", "dora", "ia3", "union")
        for backbone in BYPASSED
    },
    **{("ia3", backbone): "this model has no such layers" for backbone in WITHOUT_ATTENTION},
    # peft has IA3 for linear layers and convolutions, not for nn.MultiheadAttention
    ("ia3", "tv_vit"): "peft refuses to adapt",
    **{
        (method, backbone): "expected biases to train"
        for method in ("bitfit", "union")
        for backbone in ("llama", "t5")
    },
    **{("linear_probe", backbone): "expected something to train" for backbone in ("t5", "mlp")},
    ("last_blocks", "mlp"): "expected a backbone with repeated blocks",
    ("norm", "mlp"): "this model has no such layers",
}
