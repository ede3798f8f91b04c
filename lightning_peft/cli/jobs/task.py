"""The config fitted to the task that the data has: which module, which metric is watched."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from lightning_peft.cli.config.task import REGRESSOR
from lightning_peft.evaluation.metric_names import TASKS

__all__ = ["build_module", "dataset_of", "task_of"]


def task_of(datamodule: Any) -> str:
    """The task of a data module; classes that exclude each other where it does not say."""
    task = getattr(datamodule, "task", None)
    return task if task in TASKS else "multiclass"


def dataset_of(datamodule: Any, split: str) -> Any:
    """The labelled images or texts of a split; None where the data module does not hand them out.

    Args:
        datamodule: A data module.
        split: ``"train"``, ``"val"`` or ``"test"``.
    """
    found = getattr(datamodule, "images", None) or getattr(datamodule, "texts", None)
    return None if found is None else found(split)


def build_module(model: DictConfig, num_classes: int, **more: Any) -> Any:
    """Build the module of a config with a head of so many outputs.

    Args:
        model: The group ``model``, fitted to the task.
        num_classes: Number of classes, labels or numbers.
        **more: Arguments that take the place of the config's.
    """
    from hydra.utils import instantiate

    head = "num_outputs" if model.get("_target_") == REGRESSOR else "num_classes"
    return instantiate(model, _convert_="all", **{head: num_classes}, **more)
