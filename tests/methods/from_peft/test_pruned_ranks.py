"""Adapters of AdaLoRA after ranks were pruned: saved, loaded, to ``peft`` and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import lightning_peft as lp
from lightning_peft.adaptation.handle import Adaptation
from lightning_peft.files.writing import CONFIG_FILE, WEIGHTS_FILE
from tests.support.zoo import build, example_input

STEPS = 8
FIRST, LAST = 3, 1
METHOD = lp.AdaLoRA(rank=LAST, initial_rank=FIRST, interval=2, final=0.25)

# of peft: the names of its own rank_pattern are no layers, layers of rank 0 look unfinished
pytestmark = [
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match"),
    pytest.mark.filterwarnings("ignore:Adapter 'default'. .* have invalid shape"),
]


def trained(steps: int = STEPS, method: Any = METHOD, saved: Path | None = None) -> Adaptation:
    """Train some of the eight steps: ranks are pruned after 2, 4 and, for good, after 6.

    It is saved after each step, if a directory is given.
    """
    torch.manual_seed(0)
    model = build("vit")
    adaptation = lp.adapt(model, method)
    (stepper,) = adaptation.steppers()
    stepper.begin(STEPS)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        model(example_input("vit")).square().sum().backward()
        optimizer.step()
        stepper.after_step(step)
        if saved is not None:
            adaptation.save(saved)
    return adaptation


@torch.no_grad()
def output(model: nn.Module) -> Tensor:
    return model.eval()(example_input("vit"))


def config_in(directory: Path) -> dict[str, Any]:
    return json.loads((directory / CONFIG_FILE).read_text())


def left(directory: Path) -> int:
    return sum(map(sum, config_in(directory)["rank_pattern"].values()))


def test_pruned_ranks_are_not_in_the_file_and_peft_reads_it(tmp_path: Path) -> None:
    adaptation = trained()
    expected = output(adaptation.model)
    adaptation.save(tmp_path / "ours")
    adaptation.save(tmp_path / "again")  # the first time changed nothing
    assert config_in(tmp_path / "ours") == config_in(tmp_path / "again")
    values = [p for n, p in adaptation.model.named_parameters() if ".lora_E." in n]
    assert left(tmp_path / "ours") == LAST * len(values) == sum(int((p != 0).sum()) for p in values)

    theirs = peft.PeftModel.from_pretrained(build("vit"), str(tmp_path / "ours"))
    torch.testing.assert_close(output(theirs), expected, rtol=1e-6, atol=1e-6)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    ours, written = (load_file(tmp_path / who / WEIGHTS_FILE) for who in ("ours", "theirs"))
    assert ours.keys() == written.keys()
    assert all(torch.equal(ours[name], written[name]) for name in ours)
    assert (
        config_in(tmp_path / "ours")["rank_pattern"]
        == (config_in(tmp_path / "theirs")["rank_pattern"])
    )

    for name in ("ours", "theirs"):
        fresh = lp.load_adapter(build("vit"), tmp_path / name)
        assert torch.equal(output(fresh), expected)
        lp.find_adaptation(fresh).save(tmp_path / "back")
        assert load_file(tmp_path / "back" / WEIGHTS_FILE).keys() == ours.keys()
        assert left(tmp_path / "back") == left(tmp_path / "ours")


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_what_peft_trained_alone_is_read(tmp_path: Path) -> None:
    settings = {"init_r": FIRST, "target_r": LAST, "tinit": 1, "tfinal": 2, "deltaT": 2}
    config = peft.AdaLoraConfig(
        target_modules=["qkv", "fc1"], modules_to_save=["head"], total_step=STEPS, **settings
    )
    torch.manual_seed(0)
    theirs = peft.get_peft_model(build("vit"), config)
    optimizer = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=0.01)
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        theirs(example_input("vit")).square().sum().backward()
        optimizer.step()
        theirs.base_model.update_and_allocate(step)
    expected = output(theirs)
    theirs.save_pretrained(str(tmp_path))
    assert left(tmp_path) == 4 * LAST

    fresh = lp.load_adapter(build("vit"), tmp_path)
    torch.testing.assert_close(output(fresh), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("steps", [0, 1, 3, 5])
def test_between_two_allocations_the_file_computes_what_the_model_does(steps, tmp_path) -> None:
    adaptation = trained(steps)  # after 3 and 5, what was pruned has grown again
    expected = output(adaptation.model)
    adaptation.save(tmp_path)
    assert torch.equal(output(lp.load_adapter(build("vit"), tmp_path)), expected)
    theirs = peft.PeftModel.from_pretrained(build("vit"), str(tmp_path))
    torch.testing.assert_close(output(theirs), expected, rtol=1e-6, atol=1e-6)


def test_saving_leaves_the_training_as_it_was(tmp_path: Path) -> None:
    expected = trained().model.state_dict()
    found = trained(saved=tmp_path).model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_loading_into_an_adapted_model_takes_the_ranks_of_the_file(tmp_path: Path) -> None:
    trained(0).save(tmp_path / "whole")
    model = trained().model
    lp.load_adapter(model, tmp_path / "whole")
    lp.find_adaptation(model).save(tmp_path / "again")
    assert config_in(tmp_path / "again")["rank_pattern"] is None


def test_where_peft_would_scale_by_the_ranks_left_they_are_all_in_the_file(tmp_path: Path) -> None:
    options = {"init_r": FIRST, "target_r": LAST, "deltaT": 2, "tfinal": 2, "lora_alpha": 0}
    adaptation = trained(method=lp.HF("adalora", total_step=STEPS, **options))
    expected = output(adaptation.model)
    adaptation.save(tmp_path)
    theirs = peft.PeftModel.from_pretrained(build("vit"), str(tmp_path))
    torch.testing.assert_close(output(theirs), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_peft_reads_the_file_of_the_shortest_run(steps: int, tmp_path: Path) -> None:
    adaptation = lp.adapt(build("vit"), lp.AdaLoRA(rank=1, initial_rank=2, warmup=0.5, final=0.49))
    adaptation.steppers()[0].begin(steps)
    adaptation.save(tmp_path)
    peft.PeftModel.from_pretrained(build("vit"), str(tmp_path))


@pytest.mark.parametrize(
    ("ranks", "said"),
    [
        ([True], "'rank_pattern' to be a mapping"),
        ({"blocks.7.attn.qkv.lora_E": [True] * FIRST}, "which is no layer of AdaLoRA"),
        ({"blocks.0.attn.qkv.lora_E": [True]}, "which has 3 ranks"),
        ({"blocks.0.attn.qkv.lora_E": [0, 1, 2]}, r"got \[0, 1, 2\] for 'blocks.0.attn.qkv'"),
        ({"blocks.0.attn.qkv.lora_E": [True, False, False]}, r"of another shape: blocks\.0"),
        (None, "of another shape: "),
    ],
)
def test_ranks_that_do_not_fit_are_refused(ranks, said: str, tmp_path: Path) -> None:
    trained().save(tmp_path)
    config = config_in(tmp_path)
    (tmp_path / CONFIG_FILE).write_text(json.dumps({**config, "rank_pattern": ranks}))
    model = build("vit")
    with pytest.raises(lp.AdapterFileError, match=said):
        lp.load_adapter(model, tmp_path)
    assert lp.find_adaptation(model) is None
