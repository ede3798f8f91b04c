"""The example scripts run as they stand, only shorter."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from tests.support.encoders import minilm

EXAMPLES = Path(__file__).parents[2] / "examples"
ARGUMENTS = {
    "one_callback.py": ["--epochs", "2"],
    "with_the_mixin.py": ["--steps", "4"],
    "plain_pytorch.py": ["--steps", "3"],
    "text_classifier.py": ["--steps", "3"],
    "digits_as_folders.py": ["digits"],
}
SAYS = {
    "one_callback.py": "test_accuracy",
    "with_the_mixin.py": "loaded as Digits again",
    "plain_pytorch.py": "merged into a plain model",
    "text_classifier.py": "the helicopter over the bay: ",
    "digits_as_folders.py": "1,797 images in digits",
}


def test_every_example_is_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(ARGUMENTS)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_it_runs(name: str, monkeypatch, tmp_path: Path, capsys) -> None:
    if name == "text_classifier.py":
        minilm()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *ARGUMENTS[name]])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert SAYS[name] in capsys.readouterr().out
