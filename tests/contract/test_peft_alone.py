"""Tuners of `peft` against `peft` alone: the same tuner in a fresh backbone, injected by `peft`."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import lightning_peft as lp
from lightning_peft.methods.from_peft.method import PeftMethod
from lightning_peft.methods.in_weight.places import own_forward
from tests.contract.cases import CASES, REFUSED, Case
from tests.contract.tuners import READ
from tests.support.zoo import ZOO, build, output_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:Detected that the base layer has no bias term"),
    pytest.mark.filterwarnings("ignore:Invalid `oft_block_size`"),
    pytest.mark.filterwarnings("ignore:Unmerge result can be inaccurate"),
]

NOT_BY_PEFT = {
    **dict.fromkeys(
        ("attention", "attention_kv", "torch_encoder", "tv_vit"),
        "it applies what it adapts of attention twice, and has no name for a part",
    ),
    **dict.fromkeys(("lstm", "gru"), "it does not adapt recurrent layers"),
    **dict.fromkeys(("weight_normed", "spectral_normed"), "a parametrization loses its update"),
    "two_names": "it adapts one of two names",
    "asks": "its layers are no instances of the class that they replace: another branch is taken",
}
"""Where `peft` alone is wrong; dense algebra decides, in `test_references.py`."""

NOT_ON_MAPS = {("hf:gralora", "convnext"), ("hf:oft", "convnext")}
"""Tuners of `peft` that take inputs of three dimensions only."""

QUICK = ("vit", "eva")

TUNED = [
    pytest.param(case, id=str(case), marks=() if case.backbone in QUICK else pytest.mark.slow)
    for case in CASES
    if isinstance(case.method, PeftMethod)
    and (case.label, case.backbone) not in REFUSED
    and case.backbone not in NOT_BY_PEFT
    and (case.label, case.backbone) not in NOT_ON_MAPS
]


@pytest.mark.parametrize("case", TUNED)
def test_a_tuner_is_what_peft_alone_makes_of_the_backbone(case: Case) -> None:
    model = build(case.backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        adaptation = lp.adapt(model, case.method)
    if any(site.module.endswith(".matrix") for site in adaptation.sites):
        return
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adaptation.trained_parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    alone = injected_by_peft(model, case)
    # where a weight is read, peft's layer has no effect, but what it merges is the right weight;
    # where a layer does more with its weight, only the merged weight is a reference
    if case.backbone in READ or any(map(own_forward, build(case.backbone).modules())):
        for layer in alone.modules():
            if hasattr(layer, "merged_adapters"):
                layer.merge()
    with torch.no_grad():
        got, expected = output_of(model, case.backbone), output_of(alone, case.backbone)
    assert float((got - expected).abs().max() / expected.abs().max()) < 1e-5


def injected_by_peft(model: Any, case: Case) -> nn.Module:
    """Return a fresh backbone with the same tuner and the same values, without this package."""
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    alone: Any = build(case.backbone)
    config = copy.deepcopy(model.peft_config["default"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)  # some tuners draw what is in no state dict
        PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](alone, config, adapter_name="default")
    own = alone.state_dict()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name in own:
                own[name].copy_(tensor)
    left = {name for name in model.state_dict() if name not in own}
    assert not left
    return alone.eval()


assert set(QUICK) <= set(ZOO)
