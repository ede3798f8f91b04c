"""The commands beside training."""

import json
import sys

import pytest

from lightning_peft.cli import main


def test_methods_lists_every_method_with_its_source(command):
    import lightning_peft as lp

    status, out, _ = command("methods")
    assert status == 0
    first = [line.split()[0] for line in out.splitlines() if line.strip()]
    assert set(lp.list_methods()) <= set(first)
    assert lp.LoRA.summary in out
    assert lp.LoRA.reference.removeprefix("https://") in out
    assert "rank=8" not in out


def test_methods_shows_the_settings_of_those_asked_for(command):
    status, out, _ = command("methods", "*ora")
    assert status == 0
    assert "rank=8" in out
    assert "bitfit" not in out


def test_methods_lists_the_tuners_and_why_some_cannot_serve(command):
    status, out, _ = command("methods", "--tuners")
    assert status == 0
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert lines["loha"].split() == ["loha", "yes"]
    assert "no: " in lines["prompt_tuning"]


def test_methods_are_chosen_by_family_merging_and_backbone(command):
    _, out, _ = command("methods", "--family", "bottleneck", "--mergeable")
    names = [line.split()[0] for line in out.splitlines() if line.strip()]
    assert "repadapter" in names
    assert not {"houlsby", "lora"} & set(names)
    status, out, err = command("methods", "*a*", "--backbone", "resnet18")
    assert status == 0
    assert "conv_adapter" in out
    assert "adaptformer cannot adapt resnet18: adaptformer: expected blocks with" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--family", "low"], "there is no family 'low'. Expected one of bottleneck, "),
        (["lorra"], "there is no method 'lorra'. Did you mean 'lora'"),
        (["--backbone", "resnet8"], "resnet8"),
    ],
)
def test_methods_that_do_not_exist_are_told_in_a_line(command, words, message):
    status, _, err = command("methods", *words)
    assert status == 2
    assert err.startswith("lightning-peft: ")
    assert message in err


def test_a_plan_needs_no_weights_and_says_what_would_be_done(command):
    words = ("model=timm", "model.backbone=vit_base_patch16_224", "--batch", "2")
    status, out, err = command("plan", *words, "method=lora", "method.rank=4", "--json")
    assert status == 0, err
    plan = json.loads(out)
    assert plan["report"]["adapter"] == 12 * 4 * (768 * 16)
    assert len(plan["layers"]) == 14
    assert plan["memory"]["optimizer"] < plan["full"]["optimizer"] / 50
    status, out, _ = command("plan", "method=vpt_deep")
    assert status == 0
    assert "activations" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method=loraa"], "there is no method=loraa. Did you mean 'lora'"),
        (["method=conv_adapter"], "conv_adapter: expected blocks with spatial convolutions"),
        (["--batch", "0"], "expected --classes, --batch and --tokens of at least 1"),
    ],
)
def test_a_plan_that_cannot_be_made_is_told_in_a_line(command, words, message):
    status, _, err = command("plan", *words)
    assert status == 2
    assert f"lightning-peft: {message}" in err


@pytest.mark.parametrize("words", [["methods", "--bogus"], ["compare", "--bogus"]])
def test_a_wrong_flag_of_a_command_is_status_2(command, words):
    status, _, err = command(*words)
    assert status == 2
    assert "error:" in err


def test_train_is_a_command_too(command):
    status, out, _ = command("train", "method=bitfit", "--cfg", "job", "--package", "method")
    assert status == 0
    assert "lightning_peft.BitFit" in out


def test_the_command_line_stays_as_it_was_typed(tmp_path, monkeypatch, capsys):
    typed = ["lightning-peft", "train", "--cfg", "job"]
    monkeypatch.setattr(sys, "argv", typed)
    assert main() == 0
    assert sys.argv is typed
    assert "seed: 0" in capsys.readouterr().out
