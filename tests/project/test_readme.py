"""Every block of the README runs, in a fresh directory; what it says it prints, it prints."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from lightning_peft.cli import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)


def test_it_is_short() -> None:
    assert len(README.split()) <= 900


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)", README)
    assert len(links) > 10
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert not missing


def test_every_block_is_known() -> None:
    kinds = [language or text.split()[0] for language, text in BLOCKS]
    assert kinds == ["pip", "python", "PEFT:", "lightning-peft"]


@pytest.mark.parametrize("epochs", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_the_script_prints_what_it_says(epochs: int, monkeypatch, tmp_path: Path, capfd) -> None:
    script, printed = BLOCKS[1][1], BLOCKS[2][1]
    assert script.count("max_epochs=20") == 1
    path = tmp_path / "script.py"
    path.write_text(script.replace("max_epochs=20", f"max_epochs={epochs}"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    said: list[str] = []  # not from the log, which tests before may have quietened
    monkeypatch.setattr("lightning_peft.lightning.told.say", said.append)
    runpy.run_path(str(path), run_name="__main__")
    captured = capfd.readouterr()
    text = captured.out + captured.err + said[0]
    for line in printed.splitlines()[:4]:
        assert line.removesuffix("...") in text
    if epochs == 20:  # measured; another processor rounds otherwise
        said, found = (float(re.findall(r"accuracy +│ +(0\.\d+)", t)[0]) for t in (printed, text))
        assert found == pytest.approx(said, abs=0.02)


@pytest.mark.parametrize("steps", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_the_commands_run_one_after_the_other(
    steps: int, monkeypatch, tmp_path: Path, capfd
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["digits_as_folders.py", "digits"])
    runpy.run_path(str(ROOT / "examples" / "digits_as_folders.py"), run_name="__main__")
    if steps == 4:  # fewer images and steps, the same words otherwise
        for folder in (tmp_path / "digits").iterdir():
            for path in sorted(folder.glob("*.png"))[12:]:
                path.unlink()
    for line in BLOCKS[3][1].replace("\\\n", " ").splitlines():
        program, *words = shlex.split(line, comments=True)
        assert program == "lightning-peft"
        if steps == 4:
            more = ["data.labels_per_class=2"] if "data=folder" in words else []
            limits = ["bootstrap=0", "trainer.limit_test_batches=1"] if "-m" in words else []
            words = [word.replace("max_steps=100", "max_steps=4") for word in words]
            words += [*more, *limits]
        assert main(words) == 0, capfd.readouterr().err
    assert (tmp_path / "sweep" / "report.html").is_file()
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) > 10
