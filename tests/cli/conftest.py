"""Runs of the command in this very process: importing Lightning anew costs more than a tiny run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_peft.cli import main
from lightning_peft.cli.runs.summary import write_json
from lightning_peft.errors import MissingExtraError
from tests.support import composing

composing.install()

ROOT = Path(__file__).parents[2]

TINY = (
    # a backbone that takes no time, on the images of the shipped one
    "model=timm",
    "model.backbone=vit_tiny_patch16_224",
    "model.pretrained=false",
    "model.backbone_kwargs={img_size: 24, patch_size: 8, in_chans: 1, embed_dim: 16, depth: 2,"
    " num_heads: 2}",
    "data.backbone=glyph_vit",
)


def study_in(directory):
    """Read the study of a search as Optuna itself does, without the package."""
    import optuna

    path = directory / "study.journal"
    assert path.is_file()  # Optuna would make it
    journal = optuna.storages.journal.JournalFileBackend(str(path))
    storage = optuna.storages.JournalStorage(journal)
    return optuna.load_study(study_name="search", storage=storage)


@pytest.fixture
def undrawn(monkeypatch):
    """Leave out the pictures of a comparison, as where matplotlib is not installed.

    For tests of sweeps that do not look at them; those that do are in ``comparing`` and
    ``test_sweep.py``.
    """

    def missing(module, extra):
        raise MissingExtraError(f"no {module} in this test")

    monkeypatch.setattr("lightning_peft.cli.comparing.figures.require", missing)


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


@pytest.fixture
def one_thread():
    """Let torch compute on one thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def train(command, one_thread):
    """Run ``lightning-peft`` on a tiny backbone, on one thread."""
    return lambda *words: command(*TINY, *words)


@pytest.fixture
def run():
    """Write the summary of a run that never ran, and give its directory."""

    def write(directory, method, seed, accuracy, *, overrides=(), **more):
        number = len(list(directory.glob("*")))
        where = directory / f"{number}_{method.replace('/', '')}"
        summary = {
            "status": "completed",
            "method": {"name": method},
            "seed": seed,
            "overrides": [f"method={method}", f"seed={seed}", "data=digits", *overrides],
            "metrics": {"test/accuracy": accuracy, "val/accuracy": 0.5},
            "parameters": {"trained": 1000 * len(method), "total": 10**6},
            "bytes": {"checkpoint": 4000 * len(method)},
            "seconds": {"step": 0.01, "total": 12.0},
            "images": {"train": 100, "val": 50, "test": 797},
        }
        write_json(where / "summary.json", {**summary, **more})
        return where

    return write


@pytest.fixture
def interrupt(monkeypatch):
    """Make the job of one seed end as Ctrl-C ends it, after so many steps of training."""
    from lightning_peft.cli.jobs.progress import StepProgress

    def after(steps, label):
        real = StepProgress.on_train_batch_start

        def start(self, trainer, *args):
            if trainer.global_step == steps and self.label.endswith(label):
                raise KeyboardInterrupt
            return real(self, trainer, *args)

        monkeypatch.setattr(StepProgress, "on_train_batch_start", start)
        return lambda: monkeypatch.setattr(StepProgress, "on_train_batch_start", real)

    return after


@pytest.fixture
def process(tmp_path):
    """Run Python in a process of its own, in an empty directory."""
    paths = [str(tmp_path), str(ROOT), *filter(None, sys.path)]

    def start(command, limit=550):
        return subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
        )

    return start
