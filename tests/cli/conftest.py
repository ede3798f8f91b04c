"""Runs of the command in this very process: importing Lightning anew costs more than a tiny run."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra.errors import ConfigCompositionException

from lightning_peft.cli import main
from lightning_peft.cli.runs.summary import write_json
from lightning_peft.errors import MissingExtraError

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

WITHOUT_MODE = ("experiment=smoke", "experiment=few_shot")
"""Experiments that leave it to the flags whether a command is a sweep."""


def study_in(directory):
    """Read the study of a search as Optuna itself does, without the package."""
    import optuna

    path = directory / "study.journal"
    assert path.is_file()  # Optuna would make it
    journal = optuna.storages.journal.JournalFileBackend(str(path))
    storage = optuna.storages.JournalStorage(journal)
    return optuna.load_study(study_name="search", storage=storage)


@pytest.fixture
def composed_once(monkeypatch):
    """Make Hydra compose the same words once in a test.

    It composes a sweep twice, first to learn that it is one, and each job again after it has
    checked all of them. That takes longer than the tiny runs do.
    """
    real = ConfigLoaderImpl._load_configuration_impl
    known = {}

    def compose(self, config_name, overrides, run_mode, from_shell, validate_sweep_overrides):
        where = (os.getcwd(), str(self.get_search_path()), *sorted(os.environ.items()))
        key = (config_name, *overrides, run_mode, from_shell, where)
        if key not in known:
            words = (config_name, overrides, run_mode, from_shell)
            try:
                composed = real(self, *words, True)
            except ConfigCompositionException:
                return real(self, *words, validate_sweep_overrides)
            known[key] = pickle.dumps(composed)
        return pickle.loads(known[key])

    monkeypatch.setattr(ConfigLoaderImpl, "_load_configuration_impl", compose)


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
def flags_tell_the_mode(monkeypatch):
    """Spare Hydra a composition: it makes one only to learn whether the config has a mode.

    Without an experiment there is none, nor in those that most tests run (``test_conf.py``).
    """
    real = Hydra.get_mode

    def get_mode(self, config_name, overrides):
        own = all(
            element.provider != "command-line"
            for element in self.config_loader.get_search_path().get_path()
        )
        others = [word for word in overrides if word not in WITHOUT_MODE]
        brings_one = ("experiment", "hydra.mode", "hydra.searchpath")
        if own and not any(part in word for part in brings_one for word in others):
            return None
        return real(self, config_name, overrides)

    monkeypatch.setattr(Hydra, "get_mode", get_mode)


@pytest.fixture
def command(tmp_path, monkeypatch, capfd, flags_tell_the_mode):
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
