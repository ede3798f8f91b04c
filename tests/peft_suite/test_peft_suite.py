"""The suite of peft's own configurations itself, on configurations of ours."""

from __future__ import annotations

import peft
import torch
from torch import nn

from tests.peft_suite.compare import compare
from tests.peft_suite.page import main as page
from tests.peft_suite.rows import Row


def _model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).eval()


def _row(*configs):
    """Return a row whose config is the first for peft, and the second for this package."""
    given = iter(configs)
    return Row("ours", "row", _model, lambda: {"input": torch.randn(3, 6)}, lambda: next(given))


def _lora(**settings):
    return peft.LoraConfig(target_modules=["0", "2"], r=2, **settings)


def test_the_same_configuration_is_equal():
    assert compare(_row(_lora(), _lora()))["status"] == "equal"


def test_another_function_and_other_places_are_different():
    found = compare(_row(_lora(lora_alpha=8), _lora(lora_alpha=16)))
    assert found["status"] == "different"
    assert "outputs: " in found["message"]
    assert "gradients: " in found["message"]
    found = compare(_row(_lora(), peft.LoraConfig(target_modules=["0"], r=2)))
    assert "trained: only peft: 2.lora_A.default.weight" in found["message"]


def test_a_refusal_and_a_failure_of_peft_are_told_apart():
    idle = peft.LoraConfig(target_modules=["0"], r=2, qalora_group_size=4)
    found = compare(_row(idle, idle))
    assert found["status"] == "refused"
    assert "with use_qalora=True only" in found["message"]
    lost = peft.LoraConfig(target_modules=["7"])
    assert compare(_row(lost, lost))["status"] == "peft fails"


def test_the_page_is_current():
    assert page(["--check"]) == 0
