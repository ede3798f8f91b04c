"""Names of modules that moved: old pickles load, and old imports say where things are now."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

import lightning_peft as lp
from lightning_peft.moved import MOVED
from tests.fixtures.backbone import example

WHOLE = Path(__file__).parent / "fixtures" / "format_1" / "whole_module.pt"


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_is_the_new_module_and_says_so(old: str, monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, f"lightning_peft.{old}", raising=False)
    with pytest.warns(DeprecationWarning, match=rf"{old} is lightning_peft\.{MOVED[old]} since"):
        found = importlib.import_module(f"lightning_peft.{old}")
    assert found is importlib.import_module(f"lightning_peft.{MOVED[old]}")
    assert found.__spec__.name == f"lightning_peft.{MOVED[old]}"


def test_a_name_that_never_was_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match="lightning_peft.lifecycles"):
        importlib.import_module("lightning_peft.lifecycles")


@pytest.mark.filterwarnings("ignore:lightning_peft:DeprecationWarning")
def test_a_whole_module_that_0_1_pickled_is_loaded_and_gives_what_it_gave() -> None:
    # a LightningModule that had been fitted with the callback, in a pickle that 0.1.0 wrote
    found = torch.load(WHOLE, weights_only=False)
    module = found["module"]
    with torch.no_grad():
        torch.testing.assert_close(module.model(example()), found["output"])
    adaptation = lp.find_adaptation(module.model)
    assert adaptation.method == lp.LoRA(rank=2)
    adaptation.merge()
    with torch.no_grad():
        torch.testing.assert_close(module.model(example()), found["output"], rtol=1e-5, atol=1e-6)
