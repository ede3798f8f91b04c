"""Adapters of every tuner go both ways between lightning-peft and ``peft``."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch

import lightning_peft as lp
from lightning_peft.files.writing import CONFIG_FILE
from tests.contract import tuners
from tests.contract.cases import Case
from tests.contract.test_promises import evaluated, move
from tests.support.zoo import build, example_input

# `from_pretrained` warns of what a file holds beyond what it needs
pytestmark = pytest.mark.filterwarnings("ignore:.*")


def method_of(tuner: str) -> lp.HF:
    return lp.HF(tuner, **tuners.SETTINGS.get(tuner, {}))


# peft's file of FRoD has projections that come from the weights
@pytest.mark.parametrize("tuner", [name for name in tuners.TUNERS if name != "FROD"])
def test_peft_loads_what_we_wrote_and_we_load_what_peft_wrote(tuner: str, tmp_path: Path) -> None:
    model = build("vit")
    adaptation = lp.adapt(model, method_of(tuner))
    move(adaptation)
    case = Case("vit", adaptation.method, tuner)
    expected = evaluated(model, case)
    adaptation.save(tmp_path / "ours")

    config = json.loads((tmp_path / "ours" / CONFIG_FILE).read_text())
    if tuner == "UNILORA" and "peft_type" not in config:
        pytest.skip("the file of this peft does not hold all of UniLoRA: it is saved in our format")
    assert config["peft_type"] == tuner
    theirs = peft.PeftModel.from_pretrained(build("vit"), str(tmp_path / "ours")).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(example_input("vit")), expected, rtol=1e-6, atol=1e-6)

    theirs.save_pretrained(str(tmp_path / "theirs"))
    fresh = lp.load_adapter(build("vit"), tmp_path / "theirs")
    assert torch.equal(evaluated(fresh, case), expected)


def test_shira_on_other_weights_than_ours_is_refused(tmp_path: Path) -> None:
    config = peft.ShiraConfig(target_modules=["qkv"], r=2, random_seed=7)
    peft.get_peft_model(build("vit"), config).save_pretrained(str(tmp_path))
    written = json.loads((tmp_path / CONFIG_FILE).read_text())
    (tmp_path / CONFIG_FILE).write_text(json.dumps({**written, "random_seed": 8}))
    with pytest.raises(lp.AdapterFileError, match=r"unknown: blocks\.0\.attn\.qkv\.shira_indices"):
        lp.load_adapter(build("vit"), tmp_path)


def test_frod_is_made_again_from_the_weights(tmp_path: Path) -> None:
    lp.adapt(build("vit"), method_of("FROD")).save(tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / CONFIG_FILE).read_text())["save_projection"] is False
    peft.PeftModel.from_pretrained(build("vit"), str(tmp_path / "ours"))
    with pytest.raises(lp.MethodError, match="save_projection needs peft's own wrapper"):
        lp.HF("frod", save_projection=True)
    theirs = peft.get_peft_model(build("vit"), peft.FrodConfig(target_modules=["qkv"]))
    theirs.save_pretrained(str(tmp_path / "theirs"))
    with pytest.raises(lp.AdapterFileError, match=r"unknown: base_model\.frod_V"):
        lp.load_adapter(build("vit"), tmp_path / "theirs")
