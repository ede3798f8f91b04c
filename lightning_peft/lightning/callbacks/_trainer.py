"""Functions on a trainer from either of Lightning's two namespaces."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import lightning.pytorch as pl

__all__ = ["trainer_import", "warn_on_rank_zero"]


def trainer_import(trainer: pl.Trainer, submodule: str) -> ModuleType:
    """Import a submodule of the namespace that the trainer belongs to.

    Args:
        trainer: The trainer, or an object of a subclass.
        submodule: The submodule, such as ``"utilities.types"``.
    """
    for cls in type(trainer).__mro__:
        for namespace in ("lightning.pytorch", "pytorch_lightning"):
            if cls.__module__.startswith(f"{namespace}."):
                return importlib.import_module(f"{namespace}.{submodule}")
    raise TypeError(f"expected a Lightning Trainer, got {type(trainer).__name__}")


def warn_on_rank_zero(trainer: pl.Trainer, message: str) -> None:
    """Warn in one process only."""
    if trainer.is_global_zero:
        warnings.warn(message, UserWarning, stacklevel=2)
