"""Every method and every tuner of ``peft`` through the command to its end, on the shipped backbone.

A run trains, validates, writes checkpoints, tests and saves its adapter; another goes on from the
middle of it and must end with the same bits. A new method is run as soon as it is registered.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

import lightning_peft as lp
from lightning_peft.cli.config.paths import conf_dir
from lightning_peft.methods import list_methods
from tests.contract import tuners

RUN = (
    "experiment=smoke",
    "data.labels_per_class=1",
    "data.val_per_class=1",
    "data.batch_size=4",
    "+data.eval_batch_size=8",
    "trainer.max_steps=4",
    "trainer.limit_test_batches=1",
    "bootstrap=0",
    "logger=none",
    # after two of the four steps
    "+callbacks.middle={_target_: lightning.pytorch.callbacks.ModelCheckpoint,"
    " dirpath: '${output_dir}/checkpoints', filename: 'middle_{step}',"
    " auto_insert_metric_name: false, every_n_train_steps: 2, save_top_k: -1}",
)
SIZES = {"BOFT": {"boft_block_size": 4}, "OFT": {"oft_block_size": 4, "r": 0}}

# whose ranks change on the way; the others are run every week
QUICK = ("adalora",)


def words(name: str) -> tuple[str, ...]:
    """Return the words that choose a method."""
    if name == "union":
        return ("method=union", "method.methods=[lora,bitfit]")
    if name == "lora:pissa":
        return ("method=hf", "method.tuner=lora", "+method.init_lora_weights=pissa")
    _, is_tuner, tuner = name.partition("hf:")
    if not is_tuner:
        return (f"method={name}",)
    settings: dict[str, Any] = {
        **tuners.SETTINGS.get(tuner.upper(), {}),
        **SIZES.get(tuner.upper(), {}),
    }
    if tuner == "adalora":
        settings["total_step"] = 4
    return (
        "method=hf",
        f"method.tuner={tuner}",
        *(f"+method.{k}={v}" for k, v in settings.items()),
    )


def names() -> list[str]:
    """Return all methods: those with a config, those without, and the tuners."""
    configs = {path.stem for path in (conf_dir() / "method").glob("*.yaml")}
    hf = [f"hf:{tuner.lower()}" for tuner in tuners.TUNERS]
    # a Conv-Adapter has no place in the backbone that ships
    return sorted({*configs, *list_methods(), *hf, *QUICK} - {"conv_adapter", "hf"})


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names()],
)
@pytest.mark.filterwarnings("ignore")  # what a tuner says of itself is no matter here
def test_a_method_gets_to_its_end(name: str, one_thread: Any, command: Any, tmp_path: Path) -> None:
    status, _, err = command(*words(name), *RUN, "hydra.run.dir=whole")
    assert status == 0, err
    whole = tmp_path / "whole"
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert {"val/accuracy", "test/accuracy"} <= set(summary["metrics"])

    # the adapter is what the best checkpoint holds
    torch.manual_seed(0)
    pretrained = name != "scratch"
    fresh = timm.create_model("glyph_vit", pretrained=pretrained, num_classes=10)
    model = lp.load_adapter(fresh, whole / "adapter", strict_backbone=pretrained).eval()
    images = torch.randn(2, 1, 24, 24)
    with torch.no_grad():
        found = model(images)
        best = torch.load(whole / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
        own = model.state_dict()
        for key, value in best.items():
            own[key.partition(".")[2]].copy_(value)
        assert torch.equal(model(images), found)

    middle = "resume=whole/checkpoints/middle_2.ckpt"
    status, _, err = command(*words(name), *RUN, middle, "test=false", "hydra.run.dir=rest")
    assert status == 0, err
    rest = tmp_path / "rest"
    ends = [torch.load(d / "checkpoints" / "last.ckpt")["state_dict"] for d in (whole, rest)]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    files = [load_file(d / "adapter" / "adapter_model.safetensors") for d in (whole, rest)]
    assert files[0].keys() == files[1].keys()
