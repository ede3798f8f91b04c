"""The commands beside training."""

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
    assert lp.LoRA.reference in out
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
