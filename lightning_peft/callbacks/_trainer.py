"""What the callbacks ask of a trainer, whichever of Lightning's two namespaces it comes from."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import lightning.pytorch as pl

__all__ = ["is_a", "trainer_import", "warn_on_rank_zero"]


def trainer_import(trainer: pl.Trainer, submodule: str) -> ModuleType:
    """Import a submodule of the namespace that this very trainer belongs to.

    Args:
        trainer: The trainer, or an object of a subclass.
        submodule: The submodule, such as ``"utilities.types"``.
    """
    for cls in type(trainer).__mro__:
        for namespace in ("lightning.pytorch", "pytorch_lightning"):
            if cls.__module__.startswith(f"{namespace}."):
                return importlib.import_module(f"{namespace}.{submodule}")
    raise TypeError(f"expected a Lightning Trainer, got {type(trainer).__name__}")


def is_a(instance: Any, *names: str) -> bool:
    """Say whether an object is of a class, by the class's name.

    Each of the two namespaces has a class of its own under the same name, and importing a
    strategy's module only to compare with it is not free.
    """
    return any(cls.__name__ in names for cls in type(instance).__mro__)


def warn_on_rank_zero(trainer: pl.Trainer, message: str) -> None:
    """Warn once, not once a process."""
    if trainer.is_global_zero:
        warnings.warn(message, UserWarning, stacklevel=2)
