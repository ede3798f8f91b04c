"""What is looked at on a first batch: no false alarm for any method, and no trace afterwards."""

from __future__ import annotations

import pytest
import torch

import lightning_peft as lp
from lightning_peft.lightning.identity import _is_comparable, difference_at_start
from tests.contract.cases import CASES, REFUSED, Case
from tests.support.zoo import build, example_input, output_of

QUICK = {("lora", "attention"), ("union", "vit"), ("adalora", "eva"), ("hydra", "resnet")}
COMPARED = [
    pytest.param(
        case,
        id=str(case),
        marks=() if (case.label, case.backbone) in QUICK else pytest.mark.slow,
    )
    for case in CASES
    if case.method.starts_as_backbone and (case.label, case.backbone) not in REFUSED
]


@pytest.mark.filterwarnings("ignore:Detected that the base layer has no bias term")
@pytest.mark.filterwarnings("ignore:Invalid `oft_block_size`")
@pytest.mark.parametrize("case", COMPARED)
def test_no_method_is_taken_for_another_function(case: Case) -> None:
    model = build(case.backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        adaptation = lp.adapt(model, case.method)
    if not _is_comparable(adaptation):
        return
    model.eval()
    before, output = _state(model), output_of(model, case.backbone)
    inputs = example_input(case.backbone)
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else ((inputs,), {})
    found = difference_at_start(adaptation, args, kwargs)
    assert found is not None
    assert found < 1
    after = _state(model)
    assert list(after) == list(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert torch.equal(output_of(model, case.backbone), output)
    assert [p for p in adaptation.trained_parameters() if not p.requires_grad] == []


def _state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}
