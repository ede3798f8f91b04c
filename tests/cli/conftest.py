"""Runs of the command in this very process: importing Lightning anew costs more than a tiny run."""

import os

import pytest

from lightning_peft.cli import main


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """Run ``lightning-peft`` in an empty directory: ``(status, stdout, stderr)``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def run(*words):
        status = main(list(words))
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    yield run
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):  # a seed outlives its run
        os.environ.pop(name, None)
