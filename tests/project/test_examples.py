"""The example scripts run as they stand, only shorter."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from sklearn.datasets import load_digits

from tests.support.encoders import minilm

EXAMPLES = Path(__file__).parents[2] / "examples"
ARGUMENTS = {
    "one_callback.py": ["--epochs", "2"],
    "with_the_mixin.py": ["--steps", "4"],
    "plain_pytorch.py": ["--steps", "3"],
    "byte_lm_style.py": ["--steps", "1", "--tokens", "4"],
    "qlora.py": ["--steps", "4"],
    "text_classifier.py": ["--steps", "3"],
    "question_answering.py": ["--steps", "1"],
    "causal_lm.py": ["--steps", "2"],
    "preferences.py": ["--steps", "2"],
    "digits_as_folders.py": ["digits"],
    "handed_to_peft.py": ["--epochs", "1"],
}
SAYS = {
    "one_callback.py": "test_accuracy",
    "with_the_mixin.py": "loaded as Digits again",
    "plain_pytorch.py": "merged into a plain model",
    "byte_lm_style.py": "def average(values):\n  before: ",
    "qlora.py": "quantised layers after merging: 0",
    "text_classifier.py": "the helicopter over the bay: ",
    "question_answering.py": "PeftModel gives the same, up to ",
    "causal_lm.py": "the model writes: 'red is",
    "preferences.py": "the better answer gained in",
    "digits_as_folders.py": "1,797 images in digits",
    "handed_to_peft.py": "prompts, loaded by peft alone: ",
}


def first(number: int) -> Any:
    digits = load_digits()
    digits.images, digits.target = digits.images[:number], digits.target[:number]
    return digits


def test_every_example_is_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(ARGUMENTS)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_it_runs(name: str, monkeypatch, tmp_path: Path, capsys) -> None:
    if name in ("text_classifier.py", "question_answering.py"):
        minilm()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *ARGUMENTS[name]])
    if name == "plain_pytorch.py":  # it trains on the first thousand, and tests on the rest
        monkeypatch.setattr("sklearn.datasets.load_digits", lambda: first(1100))
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert SAYS[name] in capsys.readouterr().out
