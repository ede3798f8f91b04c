"""``lightning-peft soup`` over checkpoints of one run and over settings."""

import json

import pytest
import torch

from lightning_peft.adapter_reading import read_adapter
from lightning_peft.soup import soup

SMOKE = ("experiment=smoke", "schedule=none", "test=false")


def trained(path):
    state = torch.load(path, weights_only=True)["state_dict"]
    return {name.removeprefix("backbone."): tensor for name, tensor in state.items()}


@pytest.fixture
def rates(train, tmp_path):
    """A sweep of two rates on the same images, and on one backbone: its weights are seeded."""
    words = ("lr=0.01,0.02", "data.seed=0", "method=bitfit", "hydra.sweep.dir=sweep")
    status, _, err = train("-m", *SMOKE, *words)
    assert status == 0, err
    return tmp_path / "sweep"


def test_the_best_checkpoints_of_one_run_are_averaged(train, command, tmp_path):
    words = ("callbacks/average=soup", "hydra.run.dir=run", "trainer.max_steps=6", "method=ssf")
    status, _, err = train(*SMOKE, *words)
    assert status == 0, err
    paths = sorted((tmp_path / "run" / "checkpoints").glob("best*.ckpt"))
    assert len(paths) == 3
    status, out, err = command("soup", "run", "--out", "mean")
    assert status == 0, err
    assert "the soup of 3, on validation" in out
    expected = soup([trained(path) for path in paths])
    found = read_adapter(tmp_path / "mean" / "adapter").tensors
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in found)
    summary = json.loads((tmp_path / "mean" / "soup.json").read_text())
    assert len(summary["members"]) == len(summary["scores"]) == 3
    assert "test/accuracy" not in summary["metrics"]
    status, _, err = command("export", "mean", "--out", "mean.safetensors")
    assert status == 0, err


def test_a_greedy_soup_of_settings_is_not_worse_than_the_best_of_them(rates, command, tmp_path):
    status, _, err = command("soup", str(rates), "--greedy")
    assert status == 0, err
    summary = json.loads((tmp_path / "soup" / "soup.json").read_text())
    assert summary["metrics"]["val/accuracy"] >= max(summary["scores"].values())
    assert len(summary["members"]) + len(summary["left_out"]) == 2
    status, _, err = command("soup", str(rates), "--top-k", "1", "--out", "one")
    assert status == 0, err
    best = json.loads((tmp_path / "one" / "soup.json").read_text())
    assert best["metrics"]["val/accuracy"] == max(summary["scores"].values())
    status, _, err = command("soup", str(rates), "--updates")
    assert status == 2
    assert "expected LoRA on linear layers or ungrouped convolutions, got 'bitfit'" in err


def test_what_cannot_be_averaged_is_refused(rates, train, command, tmp_path):
    for name, words in {
        "other_images": ("data.seed=1", "method=bitfit"),
        "other_method": ("data.seed=0", "method=ssf"),
    }.items():
        status, _, err = train(*SMOKE, "trainer.max_steps=2", *words, f"hydra.run.dir={name}")
        assert status == 0, err
    status, _, err = command("soup", str(rates), "other_images")
    assert status == 2
    assert "other_images/checkpoints/best.ckpt was trained on other images" in err
    assert "(seed differ): no validation set is new to both" in err
    status, _, err = command("soup", str(rates), "other_method")
    assert status == 2
    assert "other_method/checkpoints/best.ckpt: the checkpoint was made with another" in err
    assert not (tmp_path / "soup").exists()
    status, _, err = command("soup", "other_method", "--top-k", "0")
    assert status == 2
    assert "expected --top-k of at least 1, got 0" in err
    status, _, err = command("soup", "other_method")
    assert status == 2
    assert "expected at least two checkpoints of finished runs, found 1" in err
