"""Find the task of the data, and build the module for it."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from lightning_peft.cli.config.task import LANGUAGE, REGRESSORS
from lightning_peft.evaluation.metric_names import MAIN

__all__ = ["build_module", "dataset_of", "task_of"]


def task_of(datamodule: Any) -> str:
    """Return the task of a data module; ``"multiclass"`` if it does not say."""
    task = getattr(datamodule, "task", None)
    return task if task in MAIN else "multiclass"


def dataset_of(datamodule: Any, split: str) -> Any:
    """Return the labelled images or texts of a split; ``None`` if the data module has no access.

    Args:
        datamodule: A data module.
        split: ``"train"``, ``"val"`` or ``"test"``.
    """
    found = getattr(datamodule, "images", None) or getattr(datamodule, "texts", None)
    return None if found is None else found(split)


def build_module(model: DictConfig, num_classes: int | None, **more: Any) -> Any:
    """Build the module of a config with a head for a number of outputs.

    Args:
        model: The group ``model``, fitted to the task.
        num_classes: Number of classes, labels or numbers; ``None`` if the data has none.
        **more: Arguments that replace those of the config.
    """
    from hydra.utils import instantiate

    if num_classes is None or str(model.get("_target_")) in LANGUAGE:
        return instantiate(model, _convert_="all", **more)
    head = "num_outputs" if model.get("_target_") in REGRESSORS.values() else "num_classes"
    return instantiate(model, _convert_="all", **{head: num_classes}, **more)
