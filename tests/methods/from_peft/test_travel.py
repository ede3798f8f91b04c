"""Adapters of every tuner go both ways between lightning-peft and ``peft``."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file

import lightning_peft as lp
from lightning_peft.files.writing import CONFIG_FILE, WEIGHTS_FILE
from tests.contract import tuners
from tests.contract.cases import Case
from tests.contract.test_promises import evaluated, move
from tests.support.zoo import build, example_input

# `from_pretrained` warns of what a file holds beyond what it needs
pytestmark = pytest.mark.filterwarnings("ignore:.*")


def method_of(tuner: str) -> lp.HF:
    return lp.HF(tuner, **tuners.SETTINGS.get(tuner, {}))


@pytest.mark.parametrize("tuner", tuners.TUNERS)
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


@pytest.mark.parametrize(
    "config",
    [
        peft.FrodConfig(target_modules=["qkv", "fc1"]),
        peft.FrodConfig(target_modules=["qkv"], save_projection=False),
        peft.RandLoraConfig(target_modules=["qkv"], r=2),
        peft.ShiraConfig(target_modules=["qkv"], r=1),
    ],
    ids=["frod", "frod-without-projections", "randlora", "shira"],
)
def test_a_file_has_what_peft_writes_though_it_can_be_computed(
    config: peft.PeftConfig, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    lp.adapt(build("vit"), config, head=False).save(tmp_path / "ours")
    torch.manual_seed(0)
    theirs = peft.get_peft_model(build("vit"), config)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    found, expected = (load_file(tmp_path / who / WEIGHTS_FILE) for who in ("ours", "theirs"))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_projections_of_other_weights_are_refused(tmp_path: Path) -> None:
    config = peft.FrodConfig(target_modules=["qkv"])
    theirs = peft.get_peft_model(build("vit"), config)
    for projection in theirs.base_model.frod_V.values():
        projection["default"].mul_(2)
    theirs.save_pretrained(str(tmp_path))
    with pytest.raises(lp.AdapterFileError, match=r"unknown: base_model\.frod_V"):
        lp.load_adapter(build("vit"), tmp_path)
