"""Runs of a foreign module, with the callback and without."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import torchmetrics

import lightning_peft as lp
from tests.wild.case import Case
from tests.wild.record import Record, make_recorder

__all__ = ["advice", "build", "evaluate", "fit", "loader", "namespace", "seed"]


_LOADERS: dict[str, Any] = {}


def namespace(module: Any) -> Any:
    """Return ``lightning.pytorch`` or ``pytorch_lightning``, whichever a module is of."""
    owners = [kind.__module__ for kind in type(module).__mro__]
    old = any(owner.startswith("pytorch_lightning.core") for owner in owners)
    return importlib.import_module("pytorch_lightning" if old else "lightning.pytorch")


def seed() -> None:
    """Seed what is built next: the same seed stands for the same pretrained weights."""
    importlib.import_module("lightning.pytorch").seed_everything(0, verbose=False)


def build(case: Case) -> tuple[Any, Any]:
    """Build a case's module from a fixed seed, and return it with its namespace."""
    seed()
    module = case.make()
    return module, namespace(module)


def loader(case: Case) -> Any:
    """Return the batches of a case, which are made once."""
    if case.name not in _LOADERS:
        _LOADERS[case.name] = case.data()
    return _LOADERS[case.name]


def fit(
    case: Case, callbacks: list[Any], folder: Path, resume: Path | None = None
) -> tuple[Any, Any, Record]:
    """Fit a new module, with a checkpoint after each epoch.

    Returns:
        The module, the trainer and the record.
    """
    module, pl = build(case)
    record = Record()
    checkpoints = pl.callbacks.ModelCheckpoint(
        folder, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True
    )
    callbacks = [*callbacks, make_recorder(pl, record), checkpoints]
    trainer = pl.Trainer(max_epochs=case.epochs, callbacks=callbacks, **_settings(case, folder))
    pl.seed_everything(1, verbose=False)
    options = {"weights_only": False} if resume else {}  # objects in hyperparameters are common
    trainer.fit(module, loader(case), loader(case), ckpt_path=resume, **options)
    return module, trainer, record


def _settings(case: Case, folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": folder,
        "log_every_n_steps": 1,
    }
    return settings | dict(case.trainer)


def evaluate(case: Case, module: Any, folder: Path, callbacks: Any = ()) -> list[float]:
    """Return what validation logs and gives, in order."""
    pl = namespace(module)
    record = Record()
    for part in module.modules():
        if isinstance(part, torchmetrics.Metric):
            part.reset()  # some modules go on counting
    trainer = pl.Trainer(
        callbacks=[*callbacks, make_recorder(pl, record)], **_settings(case, folder)
    )
    (metrics,) = trainer.validate(module, loader(case), verbose=False) or [{}]
    return [*metrics.values(), *record.outputs]


def advice(message: str) -> dict[str, Any]:
    """Return the first setting that a message proposes literally, such as ``backbone='net'``."""
    from lightning_peft import LoRA

    known = {*inspect.signature(lp.PEFT).parameters, *inspect.signature(LoRA).parameters}
    known.remove("check_gradients")  # what gets no gradient is not mended by not looking
    for key, value in re.findall(r"(\w+)=('[^']*'|\"[^\"]*\"|\[[^\]]*\]|True|False|\d+)", message):
        if key in known:
            try:
                return {key: ast.literal_eval(value)}
            except (SyntaxError, ValueError):  # an ellipsis, say
                continue
    return {}
