"""Which (method, backbone) pairs the contract suite runs on, found from the registries.

A pair either passes every promise or is refused for a reason that stands here; none is skipped.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import lightning_peft as lp
from lightning_peft.methods.base import Method
from tests.contract import tuners
from tests.contract.tuners import CONVOLUTIONAL
from tests.support.outside import OUTSIDE, TARGETS
from tests.support.zoo import ZOO

# what a method cannot do without, or a size that fits the tiny models
SETTINGS: dict[str, dict] = {
    "lora": {"rank": 2},
    **{name: {"rank": 2} for name in ("dora", "fact_tk", "fact_tt", "lora_fa", "lora_qv")},
    "adalora": {"rank": 1, "initial_rank": 2},
    "conv_adapter": {"reduction": 2},  # a single channel may be dead behind its ReLU
    "union": {"methods": (lp.LoRA(rank=2, targets="auto"), lp.BitFit())},
}
BACKBONES = tuple(ZOO)
EVERYWHERE = (*BACKBONES, *OUTSIDE)


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
        Case(backbone, _with_targets(method, backbone), name)
        for name in lp.list_methods()
        if name != "hf"
        for method in [lp.create_method(name, **SETTINGS.get(name, {}))]
        for backbone in EVERYWHERE
    ]


def _tuners() -> list[Case]:
    return [
        Case(backbone, _with_targets(method, backbone), tuners.label(name))
        for name in tuners.TUNERS
        for method in [lp.HF(name, **tuners.SETTINGS.get(name, {}))]
        for backbone in EVERYWHERE
    ]


def _with_targets(method: Method, backbone: str) -> Method:
    """Return a method that adapts what the backbone is there for."""
    targets = TARGETS.get(backbone)
    if targets is None or getattr(method, "targets", None) is None or method.name == "ia3":
        return method
    if isinstance(method, lp.HF):
        return lp.HF(method.tuner, targets=targets, **method.options)
    return replace(method, targets=targets)


CASES = _own() + _tuners()

WITHOUT_ATTENTION = (*CONVOLUTIONAL, "convnext", "mixer", "mlp")
PLAIN_VITS = ("vit", "vit_reg_avg", "deit_distilled", "hf_vit", "tv_vit")
ONE_WIDTH = ("vit", "vit_reg_avg", "deit_distilled", "beit", "gpt2")
TRANSFORMERS = tuple(name for name in BACKBONES if name not in WITHOUT_ATTENTION)

NO_BLOCKS = "expected a backbone with repeated blocks"

# what is refused, and what the refusal says
_RULES: tuple[tuple[tuple[str, ...], tuple[str, ...], str], ...] = (
    (("ia3",), WITHOUT_ATTENTION, "this model has no such layers"),
    (("bitfit", "union"), ("llama", "t5"), "expected biases to train"),
    (("linear_probe",), ("t5", "mlp"), "expected something to train"),
    (
        ("last_blocks", "adaptformer", "adapter_plus"),
        ("mlp",),
        NO_BLOCKS,
    ),
    (("norm",), ("mlp",), "this model has no such layers"),
    (("houlsby",), (*CONVOLUTIONAL, "mlp"), "expected blocks with attention or mlp"),
    (("pfeiffer",), (*CONVOLUTIONAL, "mlp"), "expected blocks with mlp"),
    (
        ("adaptformer",),
        (*CONVOLUTIONAL, "convnext", "bert", "swinv2"),
        "expected blocks with a norm before their MLP",
    ),
    (
        ("vpt_deep", "vpt_shallow", "convpass", "ladder"),
        tuple(name for name in BACKBONES if name not in PLAIN_VITS),
        "expected a plain vision transformer",
    ),
    (("repadapter",), (*CONVOLUTIONAL, "mlp"), "expected attention or an MLP of linear layers"),
    (
        ("fact_tt", "fact_tk"),
        tuple(
            n
            for n in BACKBONES
            if n not in ("vit", "vit_reg_avg", "deit_distilled", "beit", "gpt2")
        ),
        "expected linear layers of one width D",
    ),
    (("lora_qv",), WITHOUT_ATTENTION, "with linear query, key and value"),
    (("hydra",), CONVOLUTIONAL, "expected linear layers"),
    (
        ("adapter_plus",),
        (*CONVOLUTIONAL, "convnext", "mixer"),
        "expected the blocks of a transformer",
    ),
    (("conv_adapter",), (*TRANSFORMERS, "mixer", "mlp"), "blocks with spatial convolutions"),
)
REFUSED: dict[tuple[str, str], str] = {
    (method, backbone): said
    for methods, backbones, said in _RULES
    for method in methods
    for backbone in backbones
}
_OUTSIDE = json.loads(Path(__file__).with_name("refused_outside.json").read_text())
REFUSED.update(
    {
        (method, backbone): said
        for said, groups in _OUTSIDE.items()
        for group in groups
        for method in group["methods"].split()
        for backbone in group["backbones"].split()
    }
)
REFUSED.update(
    {(tuners.label(t), backbone): said for (t, backbone), said in tuners.REFUSED.items()}
)
